"""Which channels only zero filters write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.data_dependent_nets import BY_AUTOGRAD, ResNet, depends_on_data, gone, images
from support.nets import Net, made
from torch import Tensor, nn

import explainfix_ext as efx

pytest.importorskip("torch_pruning")


def test_constants() -> None:
    """Channels of zero filters are what bias and BatchNorm make of nothing: zero behind ReLU if that is negative."""
    model = made(ResNet)
    first: Any = model.get_submodule("blocks.0")
    with torch.no_grad():
        first.conv1.weight[:8] = 0
        first.bn1.running_mean.zero_()
        first.bn1.bias[:4], first.bn1.bias[4:8] = -1, 1
    scores = {"blocks.0.conv1": torch.ones(16, 16)}
    options = BY_AUTOGRAD | {"criterion": scores, "amount": 0.5, "ignore": ["stem", "blocks.*.conv2", "blocks.[12].*"]}
    kept = efx.channelprune(model, images(), **options | {"bn_bias": "keep"})
    assert kept.plan["layers"]["blocks.0.conv1"]["outputs"] == list(range(4, 16))
    dropped = efx.channelprune(model, images(), **options)
    assert dropped.plan["layers"]["blocks.0.conv1"]["outputs"] == list(range(8, 16))
    with pytest.raises(ValueError, match='bn_bias must be "keep" or "drop" with backend torch_pruning'):
        efx.channelprune(model, images(), **options | {"bn_bias": "fold"})


def test_a_parameter_annuls_nothing() -> None:
    """What is made of Parameters alone is constant, and no channel of zero filters."""

    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(16))

        def middle(self, x: Tensor) -> Tensor:
            return x * self.scale.exp().view(1, -1, 1, 1) if depends_on_data(x) else x

    report = efx.channelprune(made(Scaled), images(), amount=0.5, **BY_AUTOGRAD)
    assert gone(report, "stem") == 8
    assert len(report.plan["tensors"]["scale"]["kept"]) == 8
