"""class_features finds the inputs of the last layer that each class rests on, and how few of them are enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import check_is_module
from explainfix_ext._support.text import table_lines

from .features import Data, head_batches, last_linear

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWS = 20  # of random inputs, for what chance gives


@dataclass(frozen=True, eq=False)
class ClassFeatures:
    """ClassFeatures says which inputs of the last layer each class rests on; `class_features` makes it.

    `print` shows a table, `plot` draws.

    Attributes:
        contribution: (C, K) float64, what input k adds to the logit of class c, in the mean over its images.
        order: (C, K) int64, for each class the inputs from the largest contribution to the smallest.
        accuracy: number of inputs that each class keeps, its first ones -> accuracy with these alone. The last number
            is K, all inputs.
        chance: the same with as many random inputs for each class, the mean of 20 draws.
        images: number of images that were tested.

    Examples:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> found = class_features(model, [(torch.randn(30, 1, 4, 4), torch.arange(30) % 3)])
        >>> found.contribution.shape, list(found.accuracy)
        (torch.Size([3, 16]), [1, 2, 4, 8, 16])
    """

    contribution: Tensor
    order: Tensor
    accuracy: dict[int, float]
    chance: dict[int, float]
    images: int

    def __str__(self) -> str:
        rows = [("inputs for a class", "accuracy", "random inputs")]
        rows += [(f"{k}", f"{value:.4f}", f"{self.chance[k]:.4f}") for k, value in self.accuracy.items()]
        return "\n".join([*table_lines(rows, numbers=True), f"accuracy on {self.images:,} images"])

    def plot(self) -> Figure:
        """Draws the accuracy over the number of inputs, beside that of random ones; this needs matplotlib."""
        from .class_plots import plot_class_features  # here, because matplotlib is optional

        return plot_class_features(self)


def class_features(
    model: nn.Module,
    data: Data,
    test: Data | None = None,
    *,
    num_batches: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ClassFeatures:
    """Finds the inputs of the last layer that each class rests on, and tests the model with these alone.

    The last layer, a Linear, has weight w and inputs a. Input k contributes w[c, k] * mean(a_k over the images of class
    c) to class c. Each class keeps the n inputs that contribute most to it, for n = 1, 2, 4, ... and all: the logit of
    class c is b[c] + the sum over its n inputs of w[c, k] a_k. A model with one logit z, for two classes, counts as one
    with the logits (-z, z).

    The model runs in eval mode, and is not changed.

    Args:
        model: a classifier whose last nn.Linear gives its output.
        data: batches (x, y), such as a DataLoader, by which the inputs are chosen; y are classes (N,), integers, or 0
            and 1 (N, labels) with one 1 in each row, or (N, 1) for two classes.
        test: batches on which the accuracy is measured; None: on `data`, which is a little too good.
        num_batches: how many batches to use of each, the first ones; None: all.
        seed: seed for drawing random inputs.
        progress: show a bar over the batches on stderr (needs rich).

    Returns:
        ClassFeatures, on the CPU.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: the model has no nn.Linear, or the last one does not give its output; data is empty, or has no image
            of some class; y does not say one class for each image.
        ImportError: progress=True, and rich is not installed.

    Examples:
        >>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.randn(50, 1, 2, 2)
        >>> y = torch.arange(50) % 2
        >>> found = class_features(model, [(x, y)])

        The equivalent PyTorch, for class 1 and for all inputs:

        >>> by_hand = model[1].weight[1] * x[y == 1].flatten(1).mean(0)
        >>> torch.allclose(found.contribution[1], by_hand.double(), atol=1e-6)
        True
        >>> found.accuracy[4] == float((model(x).argmax(1) == y).float().mean())
        True

    Source: Badola et al., Decomposing the Deep: Finding Class-specific Filters in Deep CNNs (2021).
    """
    check_is_module(model)
    head = last_linear(model)
    inputs, y = _collected(model, head, data, num_batches, "class features" if progress else "")
    weight, bias = _two_sided(head)
    missing = set(range(len(weight))) - set(y.tolist())
    if missing:
        raise ValueError(
            f"data must have images of each of the {len(weight)} classes, got none of {sorted(missing)[:8]}"
        )
    contribution = weight * torch.stack([inputs[y == c].mean(0) for c in range(len(weight))])
    order = contribution.argsort(dim=1, descending=True, stable=True)
    if test is not None:
        inputs, y = _collected(model, head, test, num_batches, "class features: test" if progress else "")
    generator = torch.Generator().manual_seed(seed)
    random = [torch.rand(order.shape, generator=generator).argsort(1) for _ in range(_DRAWS)]
    counts = [*_powers_of_two(order.shape[1]), order.shape[1]]
    accuracy = {n: _accuracy(inputs, y, weight, bias, order[:, :n]) for n in counts}
    chance = {n: sum(_accuracy(inputs, y, weight, bias, some[:, :n]) for some in random) / _DRAWS for n in counts}
    return ClassFeatures(contribution, order, accuracy, chance, len(y))


def _collected(
    model: nn.Module, head: nn.Linear, data: Data, num_batches: int | None, progress: str
) -> tuple[Tensor, Tensor]:
    """Returns the inputs (N, K) of the head, float64, and classes (N,), on the CPU."""
    inputs, classes = zip(*head_batches(model, head, data, num_batches, progress), strict=True)
    return torch.cat(inputs), torch.cat(classes)


def _two_sided(head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Returns the head's weight (C, K) and bias (C,), float64 on the CPU; of one logit, those of (-z, z)."""
    weight = head.weight.detach().double().cpu()
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach().double().cpu()
    return (torch.cat([-weight, weight]), torch.cat([-bias, bias])) if len(weight) == 1 else (weight, bias)


def _powers_of_two(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length()) if 2**i < limit]


def _accuracy(inputs: Tensor, y: Tensor, weight: Tensor, bias: Tensor, kept: Tensor) -> float:
    """Returns the accuracy if each class keeps its inputs (C, n) alone, that is, has no weight for others."""
    few = torch.zeros_like(weight).scatter(1, kept, weight.gather(1, kept))
    return float(((inputs @ few.T + bias).argmax(1) == y).double().mean())
