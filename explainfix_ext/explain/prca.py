"""prca finds, for each class, the directions of a layer's channels that carry what speaks for the class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import eval_mode
from explainfix_ext._support.text import table_lines

from .features import Data, batches, check_features, class_logits, hooked, one_class_each, one_layer

_MOST_NUMBERS = 2**29  # of the moments, which is 4 GiB


@dataclass(frozen=True, eq=False)
class ClassSubspaces:
    """ClassSubspaces holds the relevant directions of each class in a layer; `prca` makes it, `print` shows a table.

    Attributes:
        layer: name of the layer.
        moments: (C, K, K) float64, M = mean of a c^T + c a^T over the images and positions of each class.
        values: (C, K), eigenvalues of M from the largest; they add up to twice the mean relevance, and may be negative.
        vectors: (C, K, K), the eigenvectors of each class, in columns: `vectors[c, :, :n]` spans its subspace.
        mean: (K,), the layer's output in the mean over all images and positions.
        images: (C,) int64, number of images of each class.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
        >>> found = prca(model, [(torch.randn(8, 1, 4, 4), torch.arange(8) % 2)], "1")
        >>> found.vectors.shape, found.images
        (torch.Size([2, 6, 6]), tensor([4, 4]))
        >>> with found.removed(model, classes=0):
        ...     logits = model(torch.randn(8, 1, 4, 4))
    """

    layer: str
    moments: Tensor
    values: Tensor
    vectors: Tensor
    mean: Tensor
    images: Tensor

    def removed(self, model: nn.Module, classes: int | Sequence[int], rank: int = 1) -> AbstractContextManager[None]:
        """Takes the relevant directions of some classes out of the layer, for a `with` block in which the model runs.

        What an output has along them is replaced by what it has in the mean over images and positions.

        Args:
            model: the model that was explained, or another one with a layer of that name and as many channels.
            classes: one class or several.
            rank: the number of directions of each class, from 1 to K.

        Returns:
            A context manager.

        Raises:
            ValueError: a class or rank is out of range, or the model has no such layer.
        """
        module = one_layer(model, self.layer)
        count, channels = self.values.shape
        chosen = [classes] if isinstance(classes, int) else list(classes)
        if not chosen or any(not 0 <= c < count for c in chosen):
            raise ValueError(f"classes must be from 0 to {count - 1}, got {classes!r}")
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= channels:
            raise ValueError(f"rank must be an integer from 1 to {channels}, got {rank!r}")
        directions = torch.cat([self.vectors[c, :, :rank] for c in chosen], 1)
        return without_directions(module, directions, self.mean)

    def __str__(self) -> str:
        ranks = [n for n in (1, 2, 4, 8) if n <= self.values.shape[1]]
        rows = [("class", "images", "relevance", *(f"in {n} direction{'s' * (n > 1)}" for n in ranks))]
        for c, values in enumerate(self.values / 2):
            cells = (f"{values[:n].sum():.4g}" for n in ranks)
            rows.append((f"{c}", f"{int(self.images[c])}", f"{values.sum():.4g}", *cells))
        last = (
            f"{self.layer}: mean relevance of a position, of {self.values.shape[1]} channels; the other directions may"
        )
        return "\n".join([*table_lines(rows, numbers=True), f"{last} speak against the class"])


@contextmanager
def without_directions(module: nn.Module, directions: Tensor, mean: Tensor) -> Iterator[None]:
    """Holds a module's output at its mean (K,) along directions (K, n), for a `with` block."""
    basis = torch.linalg.qr(directions).Q
    onto = basis @ basis.T

    def see(name: str, arguments: Any, output: Tensor) -> Tensor:
        projection, centre = onto.to(output), mean.to(output)
        moved = output.movedim(1, -1)
        return (moved - (moved - centre) @ projection).movedim(-1, 1)

    with hooked({"": module}, see):
        yield


def prca(
    model: nn.Module,
    data: Data,
    layer: str,
    *,
    num_batches: int | None = None,
    progress: bool = False,
) -> ClassSubspaces:
    """Finds the directions among a layer's channels that carry what speaks for each class (PRCA).

    At each position of each image of a class, a (K,) is the layer's output and c (K,) the gradient of the class's logit
    by it; a^T c is the relevance (gradient x activation) there. The subspace U (K, n) that keeps the most of it,
    sum a^T U U^T c, is spanned by the eigenvectors of M = mean(a c^T + c a^T) with the largest eigenvalues. A model
    with one logit z, for two classes, counts as one with the logits (-z, z).

    The model runs in eval mode, and is not changed. Of a layer that runs several times the last output counts.

    Args:
        model: a classifier.
        data: batches (x, y), such as a DataLoader; y are classes (N,), integers, or 0 and 1 (N, labels) with one 1 in
            each row, or (N, 1) for two classes.
        layer: name of a layer with an output of (N, K) or (N, K, H, W); best an activation, or a block that ends in
            one. Between the last one before a mean over positions and the logits nothing bends: there, two directions
            carry everything.
        num_batches: how many batches to use, the first ones; None: all.
        progress: show a bar over the batches on stderr (needs rich).

    Returns:
        ClassSubspaces, float64 on the CPU; a class without images has zeros.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: there is no such layer, or it gives another shape; the logits do not depend on it, or the
            relevance is not finite; the moments would take more than 4 GiB; data is empty; y does not say one class
            for each image, or one that the model does not have.
        ImportError: progress=True, and rich is not installed.

    Examples:
        >>> model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
        >>> x, y = torch.randn(10, 5).double(), torch.zeros(10, dtype=torch.long)
        >>> found = prca(model, [(x, y)], "1")

        The equivalent PyTorch, for class 0, where c is the same everywhere:

        >>> a, c = model[:2](x), model[2].weight[0].expand(10, 4)
        >>> torch.allclose(found.moments[0], (a.T @ c + c.T @ a) / 10)
        True

    Source: Chormai et al., Disentangled Explanations of Neural Network Predictions by Finding Relevant Subspaces
    (2022).
    """
    module = one_layer(model, layer)
    totals: _Totals | None = None
    for logits, classes, activation, context in _contexts(model, module, layer, data, num_batches, progress):
        if totals is None:
            c, k = logits.shape[1], activation.shape[1]
            if c * k * k > _MOST_NUMBERS:
                raise ValueError(
                    f"layer {layer} has too many channels for {c} classes: their moments are {c} x {k} x {k}"
                )
            totals = _Totals(c, activation)
        totals.add(classes, activation, context)
    if totals is None:
        raise ValueError("data is empty: expected batches (x, y)")
    moments = (totals.moments / totals.positions.clamp(min=1)[:, None, None]).cpu()
    if not bool(torch.isfinite(moments).all()):
        raise ValueError(f"relevance at layer {layer} must be finite, got NaN or infinity")
    values, vectors = torch.linalg.eigh(moments)
    mean = (totals.outputs / totals.positions.sum()).cpu()
    return ClassSubspaces(layer, moments, values.flip(1), vectors.flip(2), mean, totals.images.cpu())


class _Totals:
    """Adds up a c^T + c a^T over the images and positions of each class."""

    def __init__(self, classes: int, like: Tensor) -> None:
        channels = like.shape[1]
        self.moments = like.new_zeros(classes, channels, channels)
        self.outputs = like.new_zeros(channels)
        self.images = like.new_zeros(classes, dtype=torch.int64)
        self.positions = like.new_zeros(classes, dtype=torch.int64)

    def add(self, classes: Tensor, activation: Tensor, context: Tensor) -> None:
        self.outputs += activation.transpose(0, 1).flatten(1).sum(1)
        for c in classes.unique().tolist():
            a, g = (t[classes == c].transpose(0, 1).flatten(1) for t in (activation, context))
            half = a @ g.T
            self.moments[c] += half + half.T
            self.images[c] += int((classes == c).sum())
            self.positions[c] += a.shape[1]


def _contexts(
    model: nn.Module, module: nn.Module, layer: str, data: Data, num_batches: int | None, progress: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yields, for each batch, logits and classes, and the layer's output and the gradient by it in float64."""
    kept: list[Tensor] = []

    def cut(name: str, arguments: Any, output: Any) -> Tensor:
        """Cuts the graph at the output, and hands on a copy, which the network may overwrite."""
        check_features(name, output)
        kept[:] = [output.detach().requires_grad_()]
        return kept[0].clone()

    with eval_mode(model), hooked({layer: module}, cut):
        for x, y in batches(model, data, num_batches, "PRCA" if progress else ""):
            kept.clear()
            classes = one_class_each(y)
            with torch.enable_grad():
                logits = class_logits(model(x))
            if int(classes.max()) >= logits.shape[1]:
                raise ValueError(f"y must be below the model's {logits.shape[1]} classes, got {int(classes.max())}")
            found = None
            if kept and logits.requires_grad:
                cost = logits.gather(1, classes[:, None]).sum()
                found = torch.autograd.grad(cost, kept[0], allow_unused=True)[0]
            if found is None:
                raise ValueError(f"the model's logits do not depend on layer {layer}")
            yield logits, classes, kept[0].detach().double(), found.double()
