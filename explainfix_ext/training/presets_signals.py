"""Builds the networks for signals that time series are classified by: FCN, ResNet and InceptionTime.

`models.build_model` calls them by name. Each maps (N, in_channels, L) to logits (N, num_classes), for any length L: all
convolutions pad to "same", and the mean over time comes before the last layer. Written from the papers.

Source: FCN and ResNet: Wang, Yan, Oates 2017; InceptionTime: Ismail Fawaz et al. 2020, one network of its five.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from .width import scaled

KERNELS = (8, 5, 3)  # of FCN and of each block of ResNet
INCEPTION_KERNELS = (40, 20, 10)


def fcn1d(in_channels: int, num_classes: int, width: float) -> nn.Module:
    """Builds the fully convolutional network, of 0.26 million parameters.

    It has no learned 1x1 of its own: with fixed filters it wants `pointwise`.
    """
    channels = [in_channels, *scaled((128, 256, 128), width)]
    blocks = [_filtered(*pair, kernel) for pair, kernel in zip(pairwise(channels), KERNELS, strict=True)]
    return nn.Sequential(*blocks, *_head(channels[-1], num_classes))


def resnet1d(in_channels: int, num_classes: int, width: float) -> nn.Module:
    """Builds the residual network, of 0.50 million parameters: three blocks of three convolutions."""
    channels = [in_channels, *scaled((64, 128, 128), width)]
    return nn.Sequential(*(ResidualBlock(*pair) for pair in pairwise(channels)), *_head(channels[-1], num_classes))


def inceptiontime(in_channels: int, num_classes: int, width: float) -> nn.Module:
    """Builds the Inception network, of 0.42 million parameters: two residual blocks of three Inception modules."""
    (filters,) = scaled((32,), width)
    blocks = (InceptionBlock(in_channels, filters), InceptionBlock(4 * filters, filters))
    return nn.Sequential(*blocks, *_head(4 * filters, num_classes))


class ResidualBlock(nn.Module):
    """Adds its input, through a 1x1 where it has other channels, to what three convolutions make of it.

    Args:
        in_channels, out_channels: of (N, C, L).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        channels = (in_channels, out_channels, out_channels)
        *first, last = (_filtered(n, out_channels, kernel) for n, kernel in zip(channels, KERNELS, strict=True))
        self.body = nn.Sequential(*first, last[:-1])  # the last ReLU follows the sum
        self.shortcut = _shortcut(in_channels, out_channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class InceptionBlock(nn.Module):
    """Adds its input, through a 1x1, to what three Inception modules make of it.

    Args:
        in_channels: of (N, C, L).
        filters: of each branch of a module; the block has four times as many outputs.
    """

    def __init__(self, in_channels: int, filters: int) -> None:
        super().__init__()
        inputs = (in_channels, 4 * filters, 4 * filters)
        self.body = nn.Sequential(*(InceptionModule(n, filters) for n in inputs))
        self.shortcut = _shortcut(in_channels, 4 * filters, always=True)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class InceptionModule(nn.Module):
    """Joins four branches, each of `filters` channels: three kernel sizes after one bottleneck, and a maximum.

    Args:
        in_channels: of (N, C, L); a single one needs no bottleneck.
        filters: of each branch, and of the bottleneck.
    """

    def __init__(self, in_channels: int, filters: int) -> None:
        super().__init__()
        mixed = filters if in_channels > 1 else 1
        self.bottleneck = nn.Conv1d(in_channels, mixed, 1, bias=False) if in_channels > 1 else nn.Identity()
        self.branches = nn.ModuleList(
            nn.Conv1d(mixed, filters, kernel, padding="same", bias=False) for kernel in INCEPTION_KERNELS
        )
        self.pooled = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(in_channels, filters, 1, bias=False))
        self.norm = nn.BatchNorm1d(4 * filters)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.bottleneck(x)
        return self.relu(self.norm(torch.cat([*(branch(mixed) for branch in self.branches), self.pooled(x)], 1)))


def _filtered(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv1d(in_channels, out_channels, kernel, padding="same", bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(out_channels), nn.ReLU())


def _shortcut(in_channels: int, out_channels: int, always: bool = False) -> nn.Module:
    norm = nn.BatchNorm1d(out_channels)
    if in_channels == out_channels and not always:
        return norm
    return nn.Sequential(nn.Conv1d(in_channels, out_channels, 1, bias=False), norm)


def _head(channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, num_classes)]


PRESETS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "fcn1d": fcn1d,
    "resnet1d": resnet1d,
    "inceptiontime": inceptiontime,
}
