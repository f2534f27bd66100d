"""Networks of torchvision, timm and segmentation-models-pytorch that tests convert, and helpers to convert them.

A test file asks `needs_libraries()` first: it skips where one of the three is not installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import explainfix_ext as efx


def needs_libraries() -> None:
    for library in ("torchvision", "timm", "segmentation_models_pytorch"):
        pytest.importorskip(library, reason=f"{library} (extra `models`) is not installed")


def torchvision(name: str) -> Callable[[], nn.Module]:
    def maker() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, num_classes=5)

    return maker


def timm(name: str) -> Callable[[], nn.Module]:
    def maker() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=5)

    return maker


def deeplab() -> nn.Module:
    from torchvision.models import segmentation

    return segmentation.deeplabv3_resnet50(weights_backbone=None, num_classes=5)


def unet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=2)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # name -> (maker, image size)
    "resnet18": (torchvision("resnet18"), 64),
    "resnet50": (torchvision("resnet50"), 64),
    "densenet121": (torchvision("densenet121"), 64),
    "efficientnet_b0": (torchvision("efficientnet_b0"), 64),
    "mobilenet_v3_small": (torchvision("mobilenet_v3_small"), 64),
    "mobilenet_v3_large": (torchvision("mobilenet_v3_large"), 64),
    "vgg16_bn": (torchvision("vgg16_bn"), 32),
    "convnext_tiny": (torchvision("convnext_tiny"), 64),
    "deeplabv3_resnet50": (deeplab, 64),
    "smp.Unet": (unet, 64),
    "timm.tf_efficientnet_lite0": (timm("tf_efficientnet_lite0"), 64),
    "timm.resnet26d": (timm("resnet26d"), 64),
    "timm.mobilenetv3_small_050": (timm("mobilenetv3_small_050"), 64),
    "timm.convnext_atto": (timm("convnext_atto"), 64),
    "timm.regnetx_002": (timm("regnetx_002"), 64),
}
IN_CI = ("resnet18", "efficientnet_b0", "smp.Unet", "timm.tf_efficientnet_lite0")
ZOO = [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in MODELS]


def make(name: str, **options: Any) -> tuple[nn.Module, Tensor]:
    """The network, always with the same weights, and two images; with options it is converted with these."""
    torch.manual_seed(0)
    maker, size = MODELS[name]
    model, x = maker(), torch.randn(2, 3, size, size)
    if options:
        convert_quietly(model, **options)
    return model, x


def convert_quietly(model: nn.Module, *args: Any, **options: Any) -> efx.ConversionReport:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return efx.convert(model, *args, **options)


def output(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return y["out"] if isinstance(y, dict) else y


def fixed_layers(model: nn.Module) -> list[efx.FixedConv2d]:
    return [m for m in model.modules() if isinstance(m, efx.FixedConv2d)]
