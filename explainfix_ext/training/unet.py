"""A small U-Net (Ronneberger, Fischer, Brox 2015) with batch normalisation, of plain or depthwise-separable blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """Images (N, in_channels, H, W) -> logits (N, num_classes, H, W); H and W must divide by 2 ** (levels - 1).

    Args:
        channels: of each level, from the whole image down to the smallest.
        separable: a 3x3 convolution is a depthwise one and a 1x1, as in the paper's U-NetD. If the filters are fixed,
            the 1x1 learns; the plain one has none but its head.

    Example:
        >>> UNet(1, 1, separable=True)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 1, 32, 32])
    """

    def __init__(
        self, in_channels: int, num_classes: int, channels: Sequence[int] = (16, 32, 64, 128), separable: bool = False
    ) -> None:
        super().__init__()
        down = zip([in_channels, *channels], channels, strict=False)
        up = zip([high + low for high, low in pairwise(channels)], channels, strict=False)
        self.down = nn.ModuleList(_two_convolutions(*pair, separable) for pair in down)
        self.up = nn.ModuleList(_two_convolutions(*pair, separable) for pair in up)
        self.head = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels: list[Tensor] = []
        for block in self.down:
            x = block(nn.functional.max_pool2d(x, 2) if levels else x)
            levels.append(x)
        for block, skip in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            x = block(torch.cat([skip, nn.functional.interpolate(x, scale_factor=2.0)], 1))
        return self.head(x)


def _two_convolutions(in_channels: int, out_channels: int, separable: bool) -> nn.Sequential:
    return nn.Sequential(
        *_convolution(in_channels, out_channels, separable), *_convolution(out_channels, out_channels, separable)
    )


def _convolution(in_channels: int, out_channels: int, separable: bool) -> list[nn.Module]:
    if separable:
        depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        convolutions: list[nn.Module] = [depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=False)]
    else:
        convolutions = [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)]
    return [*convolutions, nn.BatchNorm2d(out_channels), nn.ReLU()]
