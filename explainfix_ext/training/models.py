"""Builds models by name: small presets, and every model of torchvision, timm and segmentation_models_pytorch.

`network.make_network`, the web page and the benchmarks call it. To add a preset, write a function `(in_channels,
num_classes, width) -> nn.Module`, where width scales its channels, and add it to `PRESETS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor, nn

from explainfix_ext._support.text import first_line, shown, times

from . import presets_signals
from .library_models import LIBRARIES, set_in_channels
from .model_names import unknown_model
from .presets_wrn import wide_resnet
from .width import scaled

# What numbers a model is built for: more is a slip, or a file that is to fill the memory.
LIMITS = {"in_channels": 4096, "num_classes": 2**16, "width": 16}


def build_model(name: str, in_channels: int, num_classes: int) -> nn.Module:
    """Builds a model with random weights, drawn from torch's default generator; nothing is downloaded.

    Args:
        name: a preset for small images: `bottleneck`, `basicblock` (residual networks), `densenet`, `efficientnet`,
            `unet` (with MobileNetV2 as encoder), `unet_plain` or `unet_separable`; or one of `presets_signals`.
            NAME@0.5 has half as many channels (4 at least; the stem of the residual networks has 64 at any width;
            `unet` has one width only); 16 is the widest, of 0.5 GiB. Or `wrn-DEPTH-WIDTH`, see `presets_wrn`. Or a
            model of a library: `torchvision:NAME`, `timm:NAME`, `smp:ARCH/ENCODER`, such as `timm:resnet18` and
            `smp:fpn/resnet18`.
        in_channels: channels of the images, 4,096 at most.
        num_classes: logits, per image or, of a segmentation model, per pixel; 65,536 at most.

    Raises:
        ValueError: the name is unknown (the nearest ones are given), a number is out of range, or the library behind it
            is not installed. The numbers may come from a file that anybody wrote: nothing is built before they are
            checked.

    Examples:
        >>> build_model("bottleneck", 1, 10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    if not isinstance(name, str):
        raise ValueError(f"model must be a name, got {shown(name)}")
    for what, number in (("in_channels", in_channels), ("num_classes", num_classes)):
        if not isinstance(number, Integral) or not 1 <= number <= LIMITS[what]:
            raise ValueError(f"{what} must be an integer from 1 to {LIMITS[what]:,}, got {shown(number)}")
    library, colon, model = name.partition(":")
    try:
        if colon and library in LIBRARIES:
            return LIBRARIES[library](model, in_channels, num_classes)
        preset, at, width = name.partition("@")
        if name.startswith("wrn-"):
            return wide_resnet(name, in_channels, num_classes)
        if preset in PRESETS:
            return PRESETS[preset](in_channels, num_classes, _parse_width(name, width) if at else 1.0)
    except ImportError as error:
        raise ValueError(f'model {name!r} needs {error.name}: pip install "explainfix_ext[demo]"') from None
    raise unknown_model(name, [*PRESETS, "wrn-16-4"])


def check_model(model: nn.Module, name: str, image: Tensor, target: Tensor, outputs: int) -> None:
    """Runs one image through the model, so that one that does not fit the data is refused before training.

    Args:
        name: the model's, for the message.
        image: (C, H, W).
        target: the image's target as `Dataset` has it; a mask is (1, H, W).
        outputs: logits per image, or per pixel of a mask.

    Raises:
        ValueError: the model cannot take the image, or its output is not (1, outputs), for a mask (1, outputs, H, W).
    """
    size = times(image.shape)
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
        kind = "for segmentation" if len(expected) == 4 else "that classifies images"
        hint = f": take one {kind}" if len(shape) != len(expected) else ""
        raise ValueError(f"model {name!r} gives {shape} for an image of {size}, the data needs {expected}{hint}")


def logits_of(output: Tensor | dict[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Returns the logits alone: some torchvision models return auxiliary outputs with them in training."""
    if isinstance(output, Tensor):
        return output
    return output["out"] if isinstance(output, dict) else output[0]


# Presets ------------------------------------------------------------------------------------------------------------


def _parse_width(name: str, width: str) -> float:
    try:
        value = float(width)
    except ValueError:
        value = math.nan
    if not 0 < value <= LIMITS["width"]:
        most = LIMITS["width"]
        raise ValueError(f"model must be NAME or NAME@WIDTH such as bottleneck@0.5, {most} at most, got {shown(name)}")
    return value


def _small_resnet(block: str, in_channels: int, num_classes: int, width: float) -> nn.Module:
    """Builds a ResNet of 0.3 to 0.5 million parameters, for small images.

    Its stages are at 1/2 to 1/16 of the image's size; ImageNet's are at 1/4 to 1/32. The stem has 64 channels at any
    width. Shortcuts average before they subsample (ResNet-D), because the pixels that a plain one drops may be seen by
    no other path: a fixed 3x3 filter with stride 2 can be zero there.
    """
    from timm.models import resnet

    channels = tuple(scaled((16, 32, 64, 128), width))
    model = resnet.ResNet(
        getattr(resnet, block), (1, 1, 1, 1), num_classes, in_channels, channels=channels, avg_down=True
    )
    model.set_submodule("maxpool", nn.Identity())
    return model


def _densenet(in_channels: int, num_classes: int, width: float) -> nn.Module:
    """Builds a DenseNet of 0.2 million parameters, its blocks at 1/2 to 1/8 of the image's size."""
    from torchvision.models import DenseNet

    growth, first = scaled((16, 32), width)
    model = DenseNet(growth, (3, 4, 4), first, num_classes=num_classes)
    stem = nn.Conv2d(in_channels, first, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)
    model.set_submodule("features.conv0", stem)
    model.set_submodule("features.pool0", nn.Identity())
    return model


def _efficientnet(in_channels: int, num_classes: int, width: float) -> nn.Module:
    """Builds an EfficientNet of 0.2 million parameters: MBConv blocks with 3x3 and 5x5 depthwise filters."""
    from torchvision.models import EfficientNet
    from torchvision.models.efficientnet import MBConvConfig

    stages = [  # expansion, kernel, stride, in, out, blocks
        MBConvConfig(1, 3, 1, 32, 16, 1, width),
        MBConvConfig(4, 3, 2, 16, 24, 2, width),
        MBConvConfig(4, 5, 1, 24, 40, 2, width),
        MBConvConfig(4, 3, 2, 40, 80, 2, width),
    ]
    model = EfficientNet(stages, dropout=0.2, num_classes=num_classes)
    set_in_channels(model, in_channels)
    return model


def _unet(in_channels: int, num_classes: int, width: float) -> nn.Module:
    """Builds smp's U-Net on MobileNetV2, of 0.6 million parameters."""
    import segmentation_models_pytorch as smp

    if width != 1:
        raise ValueError(f"model unet has one width, got unet@{width:g}: take unet_plain or unet_separable")
    return smp.Unet(
        "tu-mobilenetv2_050",
        encoder_depth=4,
        encoder_weights=None,
        decoder_channels=(48, 32, 16, 16),
        in_channels=in_channels,
        classes=num_classes,
    )


def _small_unet(separable: bool, in_channels: int, num_classes: int, width: float) -> nn.Module:
    """Builds our U-Net, of 0.5 million parameters, or 0.06 if separable."""
    return UNet(in_channels, num_classes, scaled((16, 32, 64, 128), width), separable)


PRESETS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "bottleneck": partial(_small_resnet, "Bottleneck"),
    "basicblock": partial(_small_resnet, "BasicBlock"),
    "densenet": _densenet,
    "efficientnet": _efficientnet,
    "unet": _unet,
    "unet_plain": partial(_small_unet, False),
    "unet_separable": partial(_small_unet, True),
    **presets_signals.PRESETS,
}


class UNet(nn.Module):
    """Maps images (N, in_channels, H, W) to logits (N, num_classes, H, W).

    H and W must be multiples of 2 ** (levels - 1). Each level has two 3x3 convolutions on the way down and on the way
    up; down by max-pooling, up by nearest neighbours.

    Args:
        in_channels: channels of the images.
        num_classes: logits per pixel.
        channels: of each level, from the whole image down to the smallest.
        separable: each 3x3 convolution becomes a depthwise one and a 1x1, as in the paper's U-NetD. If the filters are
            fixed, the 1x1 learns; without it, only norms and head learn.

    Examples:
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
