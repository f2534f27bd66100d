"""Norms over all channels: with bn_bias="drop" they go on over the channels that stay, else these stay whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import BY_CHANNEL, Net, images, made
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.prune.trace.kinds import why_uncuttable
from explainfix_ext.prune.trace.norms import axis_of_norm, normalised


class ChannelsFirst(nn.LayerNorm):
    """As the LayerNorm2d of torchvision and timm."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Normed(Net):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        for parameter in norm.parameters():
            nn.init.normal_(parameter)

    def middle(self, x: Tensor) -> Tensor:
        if type(self.norm) is nn.LayerNorm:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "last": lambda: nn.LayerNorm(16, eps=1e-3),
    "without numbers": lambda: nn.LayerNorm(16, elementwise_affine=False),
    "without a bias": lambda: nn.LayerNorm(16, bias=False),
    "first": lambda: ChannelsFirst(16),
    "one group": lambda: nn.GroupNorm(1, 16),
}


def by_definition(model: Any, x: Tensor, plan: dict[str, Any]) -> Tensor:
    """Computes the whole model with the norm over the channels that stay, by functions of torch."""
    kept, norm = plan["per_channel"]["norm"]["kept"], model.norm
    x = F.relu(model.bn(model.stem(x)))[:, kept]
    weight, bias = (None if p is None else p[kept] for p in (norm.weight, norm.bias))
    if isinstance(norm, nn.GroupNorm):
        x = F.group_norm(x, 1, weight, bias, norm.eps)
    else:
        x = F.layer_norm(x.movedim(1, -1), (len(kept),), weight, bias, norm.eps).movedim(-1, 1)
    outputs = plan["layers"]["tail"]["outputs"] or [*range(8)]
    x = F.conv2d(x, model.tail.weight[outputs][:, kept], model.tail.bias[outputs], padding=1)
    return F.linear(F.relu(x).mean((2, 3)), model.head.weight[:, outputs], model.head.bias)


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_goes_on_over_the_channels_that_stay(kind: str) -> None:
    model, x = made(lambda: Normed(KINDS[kind]())).double(), images(size=16).double()  # as many pixels as channels
    report = efx.channelprune(model, x, amount=0.9, **BY_CHANNEL)
    assert 1 <= len(report.plan["per_channel"]["norm"]["kept"]) < 16
    assert torch.allclose(report.model(x), by_definition(model, x, report.plan), atol=1e-12)
    assert report.verify_error is not None
    fresh = efx.apply_plan(made(lambda: Normed(KINDS[kind]())).double(), report.plan)
    fresh.load_state_dict(report.model.state_dict())
    assert torch.equal(fresh(x), report.model(x))
    for bn_bias in ("keep", "fold"):
        whole = efx.channelprune(model, x, amount=0.9, **(BY_CHANNEL | {"bn_bias": bn_bias}))
        assert "norm" not in whole.plan["per_channel"]
        assert 'bn_bias="drop" takes it over those that stay' in whole.protected["stem"]


def test_a_norm_of_another_kind_holds_its_channels() -> None:
    class Activated(ChannelsFirst):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    report = efx.channelprune(made(lambda: Normed(Activated(16))), images(), amount=0.9, **BY_CHANNEL)
    assert "Activated" in report.protected["stem"]
    assert "norm" not in report.plan["per_channel"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_is_that_of_torch(kind: str) -> None:
    norm, x = KINDS[kind]().double(), torch.randn(2, 16, 16, 16, dtype=torch.float64)
    y = norm(x)
    axis = axis_of_norm(norm, x, y)
    assert axis == (3 if kind in ("last", "without numbers", "without a bias") else 1)
    assert torch.allclose(normalised(norm, x, axis, torch.arange(16)), y, atol=1e-12)
    part = normalised(norm, x, axis, torch.tensor([2, 5, 7])).movedim(axis, 0)
    assert not bool(part[[0, 1, 3, 15]].any())
    assert axis_of_norm(norm, x, y + x) is None


def test_a_linear_layer_with_the_forward_of_nn_linear_is_cut() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias)

    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Adapted(Own):  # as LoRA, whose second factor begins at zero
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.down = nn.Parameter(torch.randn(2, inputs))

    assert why_uncuttable(Own(8, 4)) == ""
    assert "overrides forward" in why_uncuttable(Twice(8, 4))
    assert "overrides forward" in why_uncuttable(Adapted(8, 4))
    model = made(Net)
    model.head = Own(8, 4)
    report = efx.channelprune(model, images(), amount=0.6, **BY_CHANNEL)
    assert report.model.head.in_features == report.model.tail.out_channels < 8
