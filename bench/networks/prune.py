"""Lists the networks that tests prune: each has a kind of block or of connection that no other has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .blocks import double_conv, torchvision_model


class SmallUNet(nn.Module):
    """Maps images to logits per pixel through two levels of resolution, in variants that pruning must tell apart.

    Args:
        keyword: concatenate skips as `torch.cat([a, b], dim=1)` instead of `torch.cat([a, b], 1)`.
        transposed: go up by transposed convolutions instead of nearest neighbours.
        width: channels of the first level.
        classes: logits per pixel.
    """

    def __init__(self, keyword: bool = False, transposed: bool = False, width: int = 32, classes: int = 2) -> None:
        super().__init__()
        w = width
        self.keyword = keyword
        self.down1, self.down2, self.bottom = double_conv(3, w), double_conv(w, 2 * w), double_conv(2 * w, 4 * w)
        self.pool = nn.MaxPool2d(2)
        self.up2: nn.Module = nn.ConvTranspose2d(4 * w, 4 * w, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.up1: nn.Module = nn.ConvTranspose2d(2 * w, 2 * w, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.level2, self.level1 = double_conv(6 * w, 2 * w), double_conv(3 * w, w)
        self.head = nn.Conv2d(w, classes, 1)

    def _joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=1) if self.keyword else torch.cat([a, b], 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self.level2(self._joined(self.up2(self.bottom(self.pool(two))), two))
        return self.head(self.level1(self._joined(self.up1(x), one)))


_torchvision = partial(torchvision_model, num_classes=10)

PRUNE_MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": partial(_torchvision, "resnet18"),
    "resnet50": partial(_torchvision, "resnet50"),
    "resnext50": partial(_torchvision, "resnext50_32x4d"),
    "densenet121": partial(_torchvision, "densenet121"),
    "vgg11_bn": partial(_torchvision, "vgg11_bn"),
    "vgg16": partial(_torchvision, "vgg16"),
    "googlenet": partial(_torchvision, "googlenet", init_weights=False),
    "inception_v3": partial(_torchvision, "inception_v3", init_weights=False),
    "squeezenet": partial(_torchvision, "squeezenet1_1"),
    "mobilenet_v2": partial(_torchvision, "mobilenet_v2"),
    "mobilenet_v3_small": partial(_torchvision, "mobilenet_v3_small"),
    "mobilenet_v3_large": partial(_torchvision, "mobilenet_v3_large"),
    "mnasnet": partial(_torchvision, "mnasnet1_0"),
    "shufflenet_v2": partial(_torchvision, "shufflenet_v2_x1_0"),
    "efficientnet_b0": partial(_torchvision, "efficientnet_b0"),
    "regnet": partial(_torchvision, "regnet_y_400mf"),
    "convnext_tiny": partial(_torchvision, "convnext_tiny"),
    "deeplabv3": partial(_torchvision, "deeplabv3_resnet50"),
    "fcn": partial(_torchvision, "fcn_resnet50"),
    "unet_concat": SmallUNet,
    "unet_concat_keyword": partial(SmallUNet, keyword=True),
    "unet_transposed": partial(SmallUNet, transposed=True),
}


def randomise_norms(model: nn.Module) -> nn.Module:
    """Gives every BatchNorm statistics and weights as if trained: a fresh one hides what a removed channel adds."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            with torch.no_grad():
                module.weight.copy_(torch.rand(n, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(n, generator=generator) * 0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(n, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(n, generator=generator) + 0.5)
    return model
