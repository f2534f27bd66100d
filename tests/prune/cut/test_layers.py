"""Cut layers keep their kind: dtype, memory format, mode, frozen or learned, plain or bank."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from support.nets import BY_CHANNEL, Net, Residual, conv, images, made
from torch import Tensor, nn

import explainfix_ext as efx


def test_channels_last_weights_stay_so_and_the_example_too() -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    model = made(Writes).to(memory_format=torch.channels_last)
    x = images()
    report = efx.channelprune(model, x, amount=0.6, **BY_CHANNEL)
    assert torch.equal(x, images())
    assert isinstance(report.model, Writes)
    assert report.model.tail.weight.is_contiguous(memory_format=torch.channels_last)


def test_modes_dtypes_and_frozen_parameters_stay() -> None:
    model = made(Residual).double()
    model.train()
    model.bn.eval()
    model.a.weight.requires_grad_(False)
    report = efx.channelprune(model, images().double(), amount=0.6, **BY_CHANNEL)
    pruned = report.model
    assert isinstance(pruned, Residual)
    assert pruned.training
    assert not pruned.bn.training
    assert not pruned.a.weight.requires_grad
    assert pruned.b.weight.requires_grad
    assert pruned.b.weight.dtype == torch.float64
    assert isinstance(pruned.b.weight, nn.Parameter)
    assert {p.grad is None for p in pruned.parameters()} == {True}


def test_pruned_banks_stay_banks() -> None:
    model = made(Residual, "dct2")
    pruned = efx.channelprune(model, images(), amount=0.6, **BY_CHANNEL).model
    assert isinstance(pruned, Residual)
    assert isinstance(pruned.b, efx.FixedConv2d)
    assert pruned.b.bank.index is not None
    assert pruned.b.bank.shape[0] < 16
    assert [name for name, _ in pruned.b.named_parameters()] == ["bias"]


class Grouped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(16, 16, groups=4), conv(16, 24, groups=4)
        self.tail = conv(24, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("make", [Residual, Grouped])
@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("bn_bias", ["drop", "keep"])
def test_channels_leave_the_fast_transform(make: type[Net], density: float, bn_bias: str) -> None:
    """Those that must stay, for their BatchNorm's bias, have columns of zeros."""
    model = made(make)
    efx.convert(model, "hadamard", seed=0, density=density)
    fresh = copy.deepcopy(model)
    options = BY_CHANNEL | {"bn_bias": bn_bias}
    report = efx.channelprune(model, images(), amount=0.6, **options)
    fixed = {n: m for n, m in report.model.named_modules() if isinstance(m, efx.FixedConv2d)}  # type: ignore[union-attr]
    assert len(fixed) == 4
    for name, layer in fixed.items():
        assert layer.bank.hadamard is not None, name
        assert layer.bank.groups == layer.groups
    assert "fast transform" not in str(report)
    assert sum(bank.nbytes for bank in (m.bank for m in fixed.values())) < 4000
    again = efx.apply_plan(fresh, json.loads(json.dumps(report.plan)))
    again.load_state_dict(report.model.state_dict())  # type: ignore[union-attr]
    assert torch.equal(again(images()), report.model(images()))  # type: ignore[misc]


def test_a_fast_transform_that_loses_single_filters_becomes_coefficients_and_the_report_says_so() -> None:
    model = made(Residual, "hadamard")
    report = efx.channelprune(model, images(), amount=0.4, criterion="random", granularity="filter")
    assert report.model.a.bank.coeff is not None  # type: ignore[union-attr]
    assert "stem, a, b, tail: filters of pairs of channels are zero" in str(report)
    dense = efx.channelprune(made(Residual, "dct2"), images(), amount=0.4, criterion="random")
    assert "fast transform" not in str(dense)
