"""Random filters that are far from white, and networks of them: what tests of fitted steering read."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def correlated(o: int, i: int, kernel: tuple[int, int] = (3, 3), rank: int | None = None, mean: float = 0.5) -> Tensor:
    """(o, i, *kernel): random filters that span `rank` dimensions, far from white."""
    k2 = math.prod(kernel)
    mix = torch.randn(rank or k2, k2) * torch.linspace(2, 0.2, rank or k2)[:, None]
    return ((torch.randn(o * i, rank or k2) + mean) @ mix).reshape(o, i, *kernel)


def network(*layers: tuple[int, int, int], depthwise: tuple[int, ...] = ()) -> nn.Sequential:
    """Convolutions (inputs, outputs, kernel) with correlated filters, each followed by a 1x1; some depthwise."""
    modules: list[nn.Module] = []
    for at, (inputs, outputs, kernel) in enumerate(layers):
        groups = inputs if at in depthwise else 1
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        conv.weight.data = correlated(*conv.weight.shape[:2], (kernel, kernel))
        modules += [conv, nn.Conv2d(outputs, outputs, 1)]
    return nn.Sequential(*modules, nn.Conv2d(outputs, outputs, 1))


def flat(weight: Tensor) -> Tensor:
    return weight.detach().flatten(2).flatten(0, 1).double()
