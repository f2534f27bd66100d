"""The networks on which pruning is proved and measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """A U-Net of two levels. Its skips are concatenated as `torch.cat([a, b], 1)`, or by keyword; it goes up by nearest
    neighbours or by transposed convolutions."""

    def __init__(self, keyword: bool = False, transposed: bool = False, width: int = 32, classes: int = 2) -> None:
        super().__init__()
        w = width
        self.keyword = keyword
        self.down1, self.down2, self.bottom = _double(3, w), _double(w, 2 * w), _double(2 * w, 4 * w)
        self.pool = nn.MaxPool2d(2)
        self.up2: nn.Module = nn.ConvTranspose2d(4 * w, 4 * w, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.up1: nn.Module = nn.ConvTranspose2d(2 * w, 2 * w, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.level2, self.level1 = _double(6 * w, 2 * w), _double(3 * w, w)
        self.head = nn.Conv2d(w, classes, 1)

    def _joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=1) if self.keyword else torch.cat([a, b], 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        x = self.level2(self._joined(self.up2(self.bottom(self.pool(two))), two))
        return self.head(self.level1(self._joined(self.up1(x), one)))


def _torchvision(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    if name in models.list_models(module=models.segmentation):
        options["weights_backbone"] = None
    return models.get_model(name, weights=None, num_classes=10, **options)


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
    """Give every BatchNorm statistics and weights as if trained: at its start it hides what a removed channel adds."""
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
