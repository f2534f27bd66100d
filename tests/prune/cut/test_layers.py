"""Cut layers keep their kind: dtype, memory format, mode, frozen or learned, plain or bank."""

from __future__ import annotations

import torch
from support.nets import BY_CHANNEL, Net, Residual, images, made
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
