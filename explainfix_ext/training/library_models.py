"""Builds models of torchvision, timm and segmentation_models_pytorch by name, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from explainfix_ext._support.text import unknown_name


def _torchvision(name: str, in_channels: int, num_classes: int) -> nn.Module:
    from torchvision import models

    names = models.list_models(module=models) + models.list_models(module=models.segmentation)
    if name not in names:
        raise unknown_name("torchvision model", name, names)
    backbone = {"weights_backbone": None} if name in models.list_models(module=models.segmentation) else {}
    model = models.get_model(name, weights=None, num_classes=num_classes, **backbone)
    set_in_channels(model, in_channels)
    return model


def set_in_channels(model: nn.Module, in_channels: int) -> None:
    """Replaces the weight of the first Conv2d, so that it takes other images; torchvision has no option for it."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != in_channels:
        first.in_channels = in_channels
        first.weight = nn.Parameter(torch.empty(first.out_channels, in_channels, *first.kernel_size))
        first.reset_parameters()


def _timm(name: str, in_channels: int, num_classes: int) -> nn.Module:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise unknown_name("timm model", name, timm.list_models())
    return timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=num_classes)


def _smp(name: str, in_channels: int, num_classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    architecture, slash, encoder = name.partition("/")
    if not slash:
        raise ValueError(f"model must be smp:ARCH/ENCODER, such as smp:unet/resnet18, got 'smp:{name}'")
    if architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise unknown_name("smp architecture", architecture, smp.MODEL_ARCHITECTURES_MAPPING)
    if encoder not in smp.encoders.get_encoder_names() and not encoder.startswith("tu-"):
        raise unknown_name("smp encoder", encoder, smp.encoders.get_encoder_names())
    return smp.create_model(architecture, encoder, encoder_weights=None, in_channels=in_channels, classes=num_classes)


LIBRARIES: dict[str, Callable[[str, int, int], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "smp": _smp,
}
