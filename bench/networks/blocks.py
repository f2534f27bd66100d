"""Makes what the networks of `memory` and `prune` consist of."""

from __future__ import annotations

from typing import Any

from torch import nn


def double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    """Returns two 3x3 convolutions, each with BatchNorm and ReLU: a level of a U-Net."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def torchvision_model(name: str, **options: Any) -> nn.Module:
    """Builds a model of torchvision with random weights; nothing is downloaded."""
    from torchvision import models

    if name in models.list_models(module=models.segmentation):
        options["weights_backbone"] = None
    return models.get_model(name, weights=None, **options)
