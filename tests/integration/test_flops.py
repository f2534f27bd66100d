"""FlopCounterMode counts a fixed layer as the dense convolution that it stands for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from support.zoo import convert_quietly
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import explainfix_ext as efx
from explainfix_ext._support.models import spatial_convolutions


def flops(model: nn.Module, x: Tensor, backward: bool = False) -> int:
    with FlopCounterMode(display=False) as counter:
        y = model(x)
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


def resnet18() -> nn.Module:
    return pytest.importorskip("torchvision").models.resnet18()


def odd_layers() -> nn.Module:
    """Groups, strides, dilation, a kernel of one row, and a depthwise layer."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, (1, 5), stride=(2, 1)), nn.Conv2d(8, 16, 3, groups=4, dilation=2, padding=3)),
        nn.Conv2d(16, 16, 5, groups=16, padding="same"),
    )


@pytest.mark.parametrize("make", [resnet18, odd_layers])
@pytest.mark.parametrize("init", ["dct2", "ghaar4_s1", "hadamard"])
def test_fixed_layers_count_as_frozen_plain_ones(make: Callable[[], nn.Module], init: str) -> None:
    model, x = make(), torch.randn(2, 3, 32, 32)
    learned = flops(model, x)
    plain = copy.deepcopy(model)
    for conv in spatial_convolutions(plain).values():
        conv.weight.requires_grad_(False)
    convert_quietly(model, init)
    assert flops(model, x) == learned
    frozen = flops(plain, x, backward=True)
    assert flops(model, x, backward=True) == frozen
    efx.save_memory(model, "exact")
    assert flops(model, x, backward=True) == frozen
    efx.save_memory(model, "recompute")
    assert flops(model, x, backward=True) >= frozen, "what runs again counts again"
