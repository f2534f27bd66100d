"""The preset `wrn-DEPTH-WIDTH`: wide residual networks for small images. `models.build_model` calls it."""

from __future__ import annotations

import re
from itertools import pairwise

from torch import Tensor, nn

from explainfix_ext._support.text import shown

_DEEPEST, _WIDEST = 64, 12  # 0.5 GiB


class WideBlock(nn.Module):
    """Adds two 3x3 convolutions, a BatchNorm and a ReLU before each, to x (N, C, H, W), or to its 1x1 convolution.

    Where the channels change, or the map is subsampled, the 1x1 reads what the first ReLU gives.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        alike = in_channels == out_channels and stride == 1
        self.shortcut = None if alike else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(y)
        return x + self.conv2(self.relu2(self.bn2(self.conv1(y))))


def wide_resnet(name: str, in_channels: int, num_classes: int) -> nn.Module:
    """Builds `wrn-DEPTH-WIDTH`: three stages of 16, 32 and 64 times WIDTH channels, of (DEPTH - 4) / 6 blocks each.

    98 to 99 % of its weights are 3x3 filters: where these are fixed, little is left to learn without pointwise=True.

    Args:
        name: such as "wrn-16-4"; DEPTH is 6 n + 4, from 10 to 64, and WIDTH 1 to 12.
        in_channels: channels of the images.
        num_classes: logits.

    Raises:
        ValueError: the name is none of these.

    Examples:
        >>> sum(p.numel() for p in wide_resnet("wrn-16-4", 3, 10).parameters())
        2748890

    Source: Zagoruyko and Komodakis 2016, Wide Residual Networks.
    """
    found = re.fullmatch(r"wrn-(\d{1,2})-(\d{1,2})", name, re.ASCII)
    depth, width = map(int, found.groups()) if found else (0, 0)
    if depth % 6 != 4 or not 10 <= depth <= _DEEPEST or not 1 <= width <= _WIDEST:
        raise ValueError(
            f"model must be wrn-DEPTH-WIDTH such as wrn-16-4, DEPTH 6 n + 4 from 10 to {_DEEPEST} and WIDTH 1 to "
            f"{_WIDEST}, got {shown(name)}"
        )
    channels = [16, 16 * width, 32 * width, 64 * width]
    blocks: list[nn.Module] = []
    for stage, (before, after) in enumerate(pairwise(channels)):
        blocks.append(WideBlock(before, after, 2 if stage else 1))
        blocks += [WideBlock(after, after, 1) for _ in range((depth - 4) // 6 - 1)]
    stem = nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False)
    end = (nn.BatchNorm2d(channels[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(stem, *blocks, *end, nn.Linear(channels[-1], num_classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model
