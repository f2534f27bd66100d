"""The networks that training memory is measured on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_WIDTHS = (64, 128, 256, 512, 1024)


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Ronneberger, Fischer, Brox 2015, with padding and BatchNorm: two convolutions a level, 64 to 1024 channels."""

    def __init__(self, in_channels: int = 3, classes: int = 2) -> None:
        super().__init__()
        inputs = (in_channels, *_WIDTHS)
        self.down = nn.ModuleList(_double_conv(i, o) for i, o in zip(inputs, _WIDTHS, strict=False))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(_WIDTHS[:0:-1], _WIDTHS[-2::-1], strict=True))
        self.expand = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.up = nn.ModuleList(_double_conv(i, o) for i, o in pairs)
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


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models

        backbone = {"weights_backbone": None} if "_resnet" in name else {}
        return models.get_model(name, weights=None, **backbone)

    return build


_NAMES = ("resnet18", "resnet50", "vgg16_bn", "densenet121", "efficientnet_b0")
MEMORY_MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: _torchvision(name) for name in _NAMES},
    "unet": UNet,
    "deeplabv3_resnet50": _torchvision("deeplabv3_resnet50"),
}


def freeze_spatial(model: nn.Module) -> nn.Module:
    """No convolution with a kernel larger than 1x1 is learned; `convert` takes those that it can."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and max(module.kernel_size) > 1:
            module.weight.requires_grad_(False)
    return model
