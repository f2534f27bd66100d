"""Lists the networks that training memory is measured on, by bench_memory.py and bench_cuda_training.py.

A test takes a training step of each in float64; so a network with a new kind of block belongs here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .blocks import double_conv, torchvision_model

_WIDTHS = (64, 128, 256, 512, 1024)


class UNet(nn.Module):
    """Maps images to logits per pixel, as Ronneberger, Fischer and Brox 2015 do, with padding and BatchNorm added.

    It has five levels of two convolutions each, with 64 to 1024 channels.
    """

    def __init__(self, in_channels: int = 3, classes: int = 2) -> None:
        super().__init__()
        inputs = (in_channels, *_WIDTHS)
        self.down = nn.ModuleList(double_conv(i, o) for i, o in zip(inputs, _WIDTHS, strict=False))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(_WIDTHS[:0:-1], _WIDTHS[-2::-1], strict=True))
        self.expand = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.up = nn.ModuleList(double_conv(i, o) for i, o in pairs)
        self.head = nn.Conv2d(_WIDTHS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down[:-1]:
            x = level(x)
            skips.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for expand, level in zip(self.expand, self.up, strict=True):
            x = level(torch.cat([skips.pop(), expand(x)], 1))
        return self.head(x)


_NAMES = ("resnet18", "resnet50", "vgg16_bn", "densenet121", "efficientnet_b0")
MEMORY_MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(torchvision_model, name) for name in _NAMES},
    "unet": UNet,
    "deeplabv3_resnet50": partial(torchvision_model, "deeplabv3_resnet50"),
}
