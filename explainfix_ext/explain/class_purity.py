"""class_purity measures how well each channel of a layer tells one class from all others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from explainfix_ext._support.text import table_lines

from .features import Data, chosen_layers, indicators, layer_features

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 16
_SHUFFLES = 20  # of the labels, for what chance gives
_NUMBERS_AT_ONCE = 2**24  # of bins as 0 and 1, or of counts, held in memory together
_TIE = 1e-9  # of information, in nats: less is rounding


@dataclass(frozen=True, eq=False)
class ClassPurity:
    """ClassPurity says which channels follow one class; `class_purity` makes it. `print` shows a table, `plot` draws.

    Attributes:
        purity: name of a layer -> (K,) float64, from 0 to 1: the share of the uncertainty whether an image is of the
            channel's class that its mean takes away.
        top: name -> (K,) int64, the class that the channel tells best from all others; of two classes, the one with
            the higher mean.
        mis: name -> mutual information score, in nats: the mean over channels of the most that one tells of a class.
        chance: name -> the largest purity of any of its channels with the labels shuffled, 20 times.
        mis_chance: name -> the mean `mis` with the labels shuffled, which is the estimate's bias.
        images: number of images.

    Examples:
        >>> model, images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), torch.randn(64, 1, 8, 8)
        >>> found = class_purity(model, [(images, torch.arange(64) % 2)])
        >>> found.purity["1"].shape, found.follows["1"].dtype
        (torch.Size([4]), torch.bool)
    """

    purity: dict[str, Tensor]
    top: dict[str, Tensor]
    mis: dict[str, float]
    chance: dict[str, float]
    mis_chance: dict[str, float]
    images: int

    @property
    def follows(self) -> dict[str, Tensor]:
        """The channels, (K,) bool, that tell their class better than any of the layer does with the labels shuffled."""
        return {name: purity > self.chance[name] for name, purity in self.purity.items()}

    def __str__(self) -> str:
        rows = [("layer", "channels", "follow a class", "purest", "of class", "by chance", "MIS", "by chance")]
        for name, purity in self.purity.items():
            best = int(purity.argmax())
            counts = (f"{len(purity)}", f"{int(self.follows[name].sum())}")
            purest = (f"{purity[best]:.3f}", f"{int(self.top[name][best])}", f"{self.chance[name]:.3f}")
            rows.append((name, *counts, *purest, f"{self.mis[name]:.4f}", f"{self.mis_chance[name]:.4f}"))
        return "\n".join([*table_lines(rows, numbers=True), f"purity from 0 to 1, MIS in nats, {self.images:,} images"])

    def plot(self) -> Figure:
        """Draws the purity of each channel, a row for each layer, with what chance gives; this needs matplotlib."""
        from .class_plots import plot_class_purity  # here, because matplotlib is optional

        return plot_class_purity(self)


def class_purity(
    model: nn.Module,
    data: Data,
    layers: str | Iterable[str] | None = None,
    *,
    num_batches: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ClassPurity:
    """Measures how much the mean of each channel says about one class against all others.

    Channel k of a layer has the mean A_k of an image over its positions. Its information on class c is that of A_k and
    of whether the image is of class c, I(A_k; 1[y = c]); the purity is the largest share over the classes,
    I / H(1[y = c]). A_k is put into 16 bins by its rank, so that no monotone function of it changes anything; equal
    values share a bin. The estimate is too high for few images, by about 15 / 2N nats: compare it with what it is with
    the labels shuffled, which is returned beside it.

    The model runs in eval mode, and is not changed.

    Args:
        model: any network.
        data: batches (x, y), such as a DataLoader; y are classes (N,), integers, or 0, 1 or NaN (not
            known) (N, labels).
        layers: names of layers, or patterns of them, such as "layer4" or ["*.relu", "*.act2"], whose outputs are
            (N, K) or (N, K, H, W). Default: all activations after convolutions, or, if none is a module, blocks with a
            convolution of their own. Before the activation, a channel whose filters sum to zero has a mean of zero on
            any image.
        num_batches: how many batches to use, the first ones; None: all.
        seed: seed for shuffling the labels.
        progress: show a bar over the batches on stderr (needs rich).

    Returns:
        ClassPurity, float64 on the CPU, layers in the model's order.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: no layer matches, or one gives another shape or numbers that are not finite; data is empty; y has
            another shape, or all images are of one class.
        ImportError: progress=True, and rich is not installed.

    Examples:
        A channel that is on for class 0 alone, and misses some of its images:

        >>> y = torch.arange(100) % 10
        >>> on = ((y == 0) & (torch.arange(100) > 20)).float()
        >>> found = class_purity(nn.Sequential(nn.ReLU()), [(on[:, None], y)])

        The equivalent PyTorch, for a channel of two values:

        >>> joint = torch.histogramdd(torch.stack([on, (y == 0).float()], 1), [2, 2])[0].double() / 100
        >>> channel, label, both = (-torch.xlogy(p, p).sum() for p in (joint.sum(1), joint.sum(0), joint))
        >>> torch.allclose(found.purity["0"], (channel + label - both) / label)
        True

    Source: Liang et al., Training Interpretable Convolutional Neural Networks by Differentiating Class-specific Filters
    (ECCV 2020), with a histogram instead of nearest neighbours.
    """
    modules = chosen_layers(model, layers)
    bar = "class purity" if progress else ""
    features, y = layer_features(model, data, modules, num_batches, bar, skip=layers is None)
    labels = indicators(y)
    entropy = _entropies(labels)
    if not bool((entropy > 0).any()):
        raise ValueError("y must have images of two classes at least, got one")
    orders = torch.stack([labels, *_shuffled(labels, seed)])
    purity, top, mis, chance, mis_chance = {}, {}, {}, {}, {}
    for name, means in features.items():
        information, *by_chance = _information(_bins(means), orders)
        purity[name], top[name] = _best(information, entropy, means, labels)
        mis[name], *mis_by_chance = (float(some.amax(0).mean()) for some in (information, *by_chance))
        chance[name] = max(float(_shares(some, entropy).max()) for some in by_chance)
        mis_chance[name] = sum(mis_by_chance) / len(mis_by_chance)
    return ClassPurity(purity, top, mis, chance, mis_chance, len(labels))


def _bins(means: Tensor) -> Tensor:
    """Returns the bin of each image by its rank, (N, K) int64 below 16; equal values have the middle of their ranks."""
    values = means.T.contiguous()
    ordered = values.sort(1).values
    below, not_above = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (_BINS * (below + not_above) // (2 * len(means))).T


def _information(bins: Tensor, labels: Tensor) -> Tensor:
    """Returns the mutual information (S, C, K), in nats, of bins (N, K) and those labels (S, N, C) that are known."""
    s, n, c = labels.shape
    sides = torch.stack([labels == 0, labels == 1]).float().movedim(2, 3).reshape(2 * s * c, n)
    found = []
    for part in bins.split(max(1, _NUMBERS_AT_ONCE // (_BINS * max(n, len(sides)))), 1):
        marks = nn.functional.one_hot(part, _BINS).float().flatten(1)
        counts = (sides @ marks).double().reshape(2, s, c, -1, _BINS)  # exact: integers far below 2**24
        joint = counts / counts.sum((0, 4), keepdim=True).clamp(min=1)
        found.append(_entropy(joint.sum(4), 0) + _entropy(joint.sum(0), 3) - _entropy(joint, (0, 4)))
    return torch.cat(found, 2).clamp(min=0)


def _entropy(p: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    return -torch.xlogy(p, p).sum(dim)


def _entropies(labels: Tensor) -> Tensor:
    """Returns the entropy (C,), in nats, of whether an image is of each class."""
    counts = torch.stack([(labels == 0).double().sum(0), (labels == 1).double().sum(0)])
    return _entropy(counts / counts.sum(0).clamp(min=1), 0)


def _shares(information: Tensor, entropy: Tensor) -> Tensor:
    """Returns information (C, K) as a share of each class's entropy; a class of no or all images has none."""
    return torch.where(entropy > _TIE, 1 / entropy, 0)[:, None] * information


def _best(information: Tensor, entropy: Tensor, means: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns purity (K,) and the class (K,) that has it; of classes with the same, the one with the higher mean."""
    shares = _shares(information, entropy)
    purity = shares.amax(0)
    of_class = (labels == 1).double()
    class_means = of_class.T @ means / of_class.sum(0).clamp(min=1)[:, None]
    return purity, class_means.masked_fill(shares < purity - _TIE, -torch.inf).argmax(0)


def _shuffled(labels: Tensor, seed: int) -> list[Tensor]:
    """Returns the labels (N, C) in random orders."""
    generator = torch.Generator().manual_seed(seed)
    return [labels[torch.randperm(len(labels), generator=generator)] for _ in range(_SHUFFLES)]
