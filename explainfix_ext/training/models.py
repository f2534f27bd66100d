"""Models behind the command line: small presets, and every model of torchvision, timm and segmentation_models_pytorch.

To add a preset, write a function `(in_channels, num_classes) -> nn.Module` and register it in `PRESETS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..errors import first_line

_CHANNELS = (16, 32, 64, 128)


def build_model(name: str, in_channels: int, num_classes: int) -> nn.Module:
    """A model with random weights, drawn from torch's default generator; nothing is downloaded.

    Args:
        name: `bottleneck` and `basicblock` (residual networks for small images), `unet`; or `torchvision:NAME`,
            `timm:NAME`, `smp:ARCH/ENCODER`, such as `timm:resnet18` and `smp:fpn/resnet18`.
        in_channels: channels of the images.
        num_classes: logits, per image or, of a segmentation model, per pixel.

    Raises:
        ValueError: the name is unknown (the nearest ones are given), or the library behind it is not installed.

    Example:
        >>> build_model("bottleneck", 1, 10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    library, colon, model = name.partition(":")
    try:
        if colon and library in _LIBRARIES:
            return _LIBRARIES[library](model, in_channels, num_classes)
        if name in PRESETS:
            return PRESETS[name](in_channels, num_classes)
    except ImportError as error:
        raise ValueError(f'model {name!r} needs {error.name}: pip install "explainfix_ext[demo]"') from None
    near = difflib.get_close_matches(name, [*PRESETS, *(f"{library}:" for library in _LIBRARIES)], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = f"{', '.join(PRESETS)}, torchvision:NAME, timm:NAME or smp:ARCH/ENCODER"
    raise ValueError(f"model must be {known}, got {name!r}{hint}")


def unknown_name(kind: str, name: str, names: Iterable[str]) -> ValueError:
    """The error for a name that is not there, with the three nearest that are."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:8]
    return ValueError(f"unknown {kind} {name!r}; nearest: {', '.join(near)}")


def check_model(model: nn.Module, name: str, image: Tensor, target: Tensor, outputs: int) -> None:
    """Try one image, (C, H, W), so that a model that does not fit the data says so before training.

    Raises:
        ValueError: the model cannot take the image, or its output is not (1, outputs), for a mask (1, outputs, H, W).
    """
    size = "x".join(str(n) for n in image.shape)
    training = model.training
    try:
        with torch.no_grad():
            shape = tuple(logits_of(model.eval()(image[None])).shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"model {name!r} cannot take images of {size}: {first_line(error)}") from None
    finally:
        model.train(training)
    expected = (1, *target.shape) if target.ndim == 3 else (1, outputs)
    if shape != expected:
        raise ValueError(f"model {name!r} gives {shape} for an image of {size}, the data needs {expected}")


def logits_of(output: Tensor | dict[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The logits, without the auxiliary outputs that some torchvision models give in training."""
    if isinstance(output, Tensor):
        return output
    return output["out"] if isinstance(output, dict) else output[0]


# Presets ------------------------------------------------------------------------------------------------------------


def _small_resnet(block: str, in_channels: int, num_classes: int) -> nn.Module:
    """0.3 to 0.5 million parameters; stages at 1/2 to 1/16 of the image, where ImageNet's are at 1/4 to 1/32.

    Shortcuts average before they subsample (ResNet-D): what a plain one drops, a fixed 3x3 with stride 2 may not see.
    """
    from timm.models import resnet

    block_class = getattr(resnet, block)
    model = resnet.ResNet(block_class, (1, 1, 1, 1), num_classes, in_channels, channels=_CHANNELS, avg_down=True)
    model.set_submodule("maxpool", nn.Identity())
    return model


def _bottleneck(in_channels: int, num_classes: int) -> nn.Module:
    return _small_resnet("Bottleneck", in_channels, num_classes)


def _basicblock(in_channels: int, num_classes: int) -> nn.Module:
    return _small_resnet("BasicBlock", in_channels, num_classes)


def _unet(in_channels: int, num_classes: int) -> nn.Module:
    """0.6 million parameters."""
    import segmentation_models_pytorch as smp

    return smp.Unet(
        "tu-mobilenetv2_050",
        encoder_depth=4,
        encoder_weights=None,
        decoder_channels=(48, 32, 16, 16),
        in_channels=in_channels,
        classes=num_classes,
    )


PRESETS: dict[str, Callable[[int, int], nn.Module]] = {
    "bottleneck": _bottleneck,
    "basicblock": _basicblock,
    "unet": _unet,
}


# Libraries ----------------------------------------------------------------------------------------------------------


def _torchvision(name: str, in_channels: int, num_classes: int) -> nn.Module:
    from torchvision import models

    names = models.list_models(module=models) + models.list_models(module=models.segmentation)
    if name not in names:
        raise unknown_name("torchvision model", name, names)
    backbone = {"weights_backbone": None} if name in models.list_models(module=models.segmentation) else {}
    model = models.get_model(name, weights=None, num_classes=num_classes, **backbone)
    _set_in_channels(model, in_channels)
    return model


def _set_in_channels(model: nn.Module, in_channels: int) -> None:
    """Make the first Conv2d take other images; torchvision has no option for it."""
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

    architecture, _, encoder = name.partition("/")
    if architecture.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise unknown_name("smp architecture", architecture, smp.MODEL_ARCHITECTURES_MAPPING)
    if encoder not in smp.encoders.get_encoder_names() and not encoder.startswith("tu-"):
        raise unknown_name("smp encoder", encoder, smp.encoders.get_encoder_names())
    return smp.create_model(architecture, encoder, encoder_weights=None, in_channels=in_channels, classes=num_classes)


_LIBRARIES: dict[str, Callable[[str, int, int], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "smp": _smp,
}
