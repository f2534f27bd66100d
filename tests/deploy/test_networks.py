"""Networks of torchvision, timm and smp: folding is exact in float64, and float32 is as good as the model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.bench_networks import randomise_norms
from support.deployed import optimised, steps_in
from support.zoo import convert_quietly, make, needs_libraries, timm, torchvision
from torch import nn

import explainfix_ext as efx

needs_libraries()

# Network, how its filters are fixed; the slow ones are the rest of the table.
FAST: list[tuple[str, dict[str, Any] | None]] = [
    ("resnet18", {"init": "auto"}),
    ("resnet18", {"init": "ghaar4_s1", "pointwise": True}),
    ("resnet18", {"init": "hadamard"}),
    ("mobilenet_v3_small", {"init": "dct2"}),
    ("smp.Unet", {"init": "dct2", "pointwise": True}),
    ("timm.tf_efficientnet_lite0", {"init": "dct2", "density": 0.3}),
    ("timm.mobilenetv3_small_050", None),
    ("timm.regnetx_002", {"init": "unchanged"}),
]
SLOW: list[tuple[str, dict[str, Any] | None]] = [
    ("resnet18", {"init": "dct2", "density": 0.1}),
    ("resnet18", {"init": "dct2", "learn_coeff": True}),
    ("resnet18", {"init": "sdct4"}),
    ("resnet18", None),
    ("resnet50", {"init": "dct2"}),
    ("densenet121", {"init": "auto"}),
    ("efficientnet_b0", {"init": "dct2"}),
    ("efficientnet_b0", None),
    ("mobilenet_v3_large", {"init": "ghaar4_s1"}),
    ("vgg16_bn", {"init": "hadamard"}),
    ("convnext_tiny", {"init": "dct2"}),
    ("deeplabv3_resnet50", {"init": "dct2", "pointwise": True}),
    ("timm.resnet26d", {"init": "psine"}),
    ("timm.convnext_atto", {"init": "ghaar"}),
]
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


def check(model: nn.Module, x: torch.Tensor) -> efx.Optimized:
    """Equal to the model, and nothing is left that could have been joined."""
    fast = optimised(randomise_norms(model).eval(), x[:1])
    calls = steps_in(fast)
    assert not {"Conv2d", "FixedConv2d"} & set(calls)
    return fast


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_fixed_networks(name: str, options: dict[str, Any] | None) -> None:
    model, x = make(name)
    if options is not None:
        convert_quietly(model, seed=0, **options)
    fast = check(model, x)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(fast.steps) == len(convolutions)
    if name.startswith(("resnet", "timm.regnet")):
        assert not {"BatchNorm2d", "ReLU", "Hardswish", "relu", "add", "iadd", "add_"} & set(steps_in(fast))


PRUNED = {
    "by filters": ({"criterion": "l1"}, True),
    "filters that stay": ({"criterion": "l1", "structured": False}, True),
    "by channels": ({"criterion": "l1", "granularity": "channel"}, False),
}


@pytest.mark.parametrize("how", PRUNED)
def test_pruned_networks(how: str) -> None:
    options, fixed = PRUNED[how]
    model, x = make("resnet18")
    if fixed:
        convert_quietly(model, "dct2", seed=0)
    report = efx.channelprune(randomise_norms(model), x[:1], amount=0.8, **options)
    check(report.model, x)


MORE = {
    torchvision: ("shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "mnasnet0_5", "regnet_y_400mf"),
    timm: (
        "legacy_seresnet18", "ghostnet_050", "repvgg_a0", "hardcorenas_a", "dla34", "hrnet_w18_small", "resnetv2_50",
        "vovnet39a", "selecsls42b", "res2net50_26w_4s", "skresnet18", "tf_mixnet_s", "fbnetc_100",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in MORE.items() for name in names])
def test_other_architectures(library: Callable[[str], Callable[[], nn.Module]], name: str) -> None:
    torch.manual_seed(0)
    model = library(name)()
    convert_quietly(model, "dct2", seed=0)
    check(model, torch.randn(2, 3, 96, 96))
