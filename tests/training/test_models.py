"""Preset models behind `explainfix train`: their widths, the small U-Nets, and those of libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from explainfix_ext.training import costs, presets_signals
from explainfix_ext.training.models import PRESETS, UNet, build_model, logits_of

for package in ("torchvision", "timm", "segmentation_models_pytorch", "torchmetrics"):
    pytest.importorskip(package, reason='needs the extra "demo"')


def size_for(name: str) -> tuple[int, ...]:
    """The size of an image, or of a signal, for a preset."""
    return (32,) if name in presets_signals.PRESETS else (32, 32)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_grey_and_colour_images(name: str) -> None:
    for channels in (1, 3):
        x = torch.randn(2, channels, *size_for(name))
        shape = build_model(name, channels, 2).eval()(x).shape
        assert shape == ((2, 2, 32, 32) if "unet" in name else (2, 2))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "unet"])
def test_the_width_scales_channels(name: str) -> None:
    narrow, usual, wide = (build_model(f"{name}@{width}", 1, 2) for width in (0.25, 1, 2))
    assert parameters(build_model(name, 1, 2)) == parameters(usual)
    assert 2.5 < parameters(wide) / parameters(usual) < 4.5
    assert 4 < parameters(usual) / parameters(narrow) < 20
    assert narrow.eval()(torch.randn(2, 1, *size_for(name))).shape[:2] == (2, 2)


@pytest.mark.parametrize("width", ["0", "-1", "nan", "inf", "wide", "", "1000", "16.1", "1e300"])
def test_a_bad_width_is_refused(width: str) -> None:
    with pytest.raises(ValueError, match=f"model must be NAME or NAME@WIDTH .*got 'bottleneck@{width}'"):
        build_model(f"bottleneck@{width}", 1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bottleneck", 10**9, 2), "in_channels must be an integer from 1 to 4,096, got 1000000000"),
        (("timm:resnet18", 3, 2**40), "num_classes must be an integer from 1 to 65,536, got 1099511627776"),
        (("torchvision:resnet18", 0, 2), "in_channels must be an integer from 1"),
        (("smp:unet/resnet18", 3, 1.5), r"num_classes must be an integer from 1 to 65,536, got 1\.5"),
        ((10**5000, 3, 2), "model must be a name, got int of very many digits"),
        (("bottleneck\n" * 99, 3, 2), "^model must be [^\n]* got 'bottleneck[^\n]*$"),
    ],
)
def test_numbers_that_no_network_has_are_refused_before_it_is_built(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build_model(*arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_the_encoder_of_the_unet_has_one_width() -> None:
    with pytest.raises(ValueError, match=r"unet has one width, got unet@0\.5: take unet_plain"):
        build_model("unet@0.5", 1, 2)


def test_the_separable_unet_has_learned_1x1_beside_each_filter() -> None:
    plain, separable = UNet(1, 1), UNet(1, 1, separable=True)
    kernels = [(m.kernel_size, m.groups) for m in separable.modules() if isinstance(m, nn.Conv2d)][:-1]
    assert all(kernel == (3, 3) and groups >= 1 for kernel, groups in kernels[::2])
    assert all(kernel == (1, 1) and groups == 1 for kernel, groups in kernels[1::2])
    assert sum(isinstance(m, nn.Conv2d) for m in plain.modules()) == len(kernels) // 2 + 1


def test_the_unet_sees_the_pixel_itself_and_far_around() -> None:
    torch.manual_seed(0)
    model = UNet(1, 1, (4, 8, 8)).double().eval()
    x = torch.randn(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(model(x)[0, 0, 16, 16], x)
    seen = dx[0, 0].nonzero()
    assert dx[0, 0, 16, 16] != 0
    assert (seen.amax(0) - seen.amin(0) >= 12).all()


@pytest.mark.parametrize("preset", ["bottleneck", "basicblock", "unet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_presets_fit_their_images(preset, channels):
    size = 64 if preset == "unet" else 28
    model = build_model(preset, channels, 5).eval()
    shape = (2, 5, size, size) if preset == "unet" else (2, 5)
    assert model(torch.zeros(2, channels, size, size)).shape == shape
    assert 0.2e6 < costs.learned_parameters(model) < 0.7e6


def test_library_models_take_any_number_of_channels():
    for name in ("torchvision:mobilenet_v3_small", "timm:resnet10t", "smp:fpn/resnet18"):
        model = build_model(name, 2, 5).eval()
        assert logits_of(model(torch.zeros(1, 2, 64, 64))).shape[:2] == (1, 5)
    with pytest.raises(ValueError, match="unknown smp encoder 'resnet17'; nearest: resnet18"):
        build_model("smp:unet/resnet17", 1, 1)
    with pytest.raises(ValueError, match="unknown smp architecture 'unot'; nearest: unet"):
        build_model("smp:unot/resnet18", 1, 1)
    with pytest.raises(ValueError, match="unknown torchvision model 'resnet19'; nearest: resnet18"):
        build_model("torchvision:resnet19", 1, 1)
