"""A fixed convolution with a learned 1x1 after it keeps neither its input nor what is between the two."""

from __future__ import annotations

import pytest
import torch
from support.training_step import EXACT, check_saving, image, prepared
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import save_memory
from explainfix_ext.memory.count import saved_bytes


class Mixed(nn.Module):
    """Two fixed convolutions with a 1x1, behind a BatchNorm and, after a sum, behind what has no note."""

    def __init__(self, init: str, **options: object) -> None:
        super().__init__()
        self.first = efx.FixedConv2d(3, 8, 3, padding=1, init=init, seed=0, pointwise=True, **options)
        self.second = efx.FixedConv2d(8, 8, 3, padding=1, init=init, seed=1, pointwise=True, **options)
        self.third = efx.FixedConv2d(8, 16, 3, padding=1, stride=2, init=init, seed=2, pointwise=True, **options)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (8, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.first(x)).relu()
        y = self.norms[1](self.second(y)).relu() + y
        return self.norms[2](self.third(y)).relu()


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("init", ["dct2", "hadamard", "ghaar4_s1"])
def test_gradients_are_exact(init: str, bias: bool, mode: str) -> None:
    check_saving(prepared(Mixed(init, bias=bias)), image(), mode)


def test_gradients_are_exact_where_the_mix_is_frozen() -> None:
    model = Mixed("dct2")
    model.second.pointwise.requires_grad_(False)
    check_saving(prepared(model), image(), "recompute")


def test_gradients_under_autocast() -> None:
    """In bfloat16 the filters' output is made again in bfloat16."""
    model, x = Mixed("dct2"), image().float()
    grads = []
    for mode in ("off", "recompute"):
        save_memory(model, mode)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).float().square().sum()
        loss.backward()
        grads.append(model.second.pointwise.grad.clone())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-2, atol=1e-2 * float(grads[0].abs().max()))


def test_only_the_input_of_each_norm_is_kept() -> None:
    layers = []
    for i in range(3):
        conv = efx.FixedConv2d(8, 8, 3, padding=1, init="dct2", seed=i, pointwise=True)
        layers += [conv, nn.BatchNorm2d(8), nn.ReLU()]
    model, x = nn.Sequential(*layers), torch.randn(2, 8, 32, 32)
    plane = x.numel() * x.element_size()

    def kept() -> float:
        return saved_bytes(model, lambda model: model(x).sum()) / plane

    before = kept()
    save_memory(model, "recompute")
    assert before > 8.9  # the 1x1's input, BatchNorm's and ReLU's, of each layer
    assert kept() < 4.1  # BatchNorm's alone, and the image, which is there anyway
