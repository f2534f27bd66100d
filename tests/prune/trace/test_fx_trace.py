"""The torch.fx walk: what it follows, what must stay and why, and layers that run in training only."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from support.nets import BY_CHANNEL, HELD, Net, Residual, conv, images, made
from torch import Tensor, nn

import explainfix_ext as efx


@pytest.mark.parametrize("name", HELD)
def test_what_mixes_channels_is_protected_and_named(name: str) -> None:
    make, reason = HELD[name]
    model = made(make)
    report = efx.channelprune(model, images(), amount=0.6, **BY_CHANNEL)
    assert reason in report.protected["stem"]
    assert report.plan["layers"].get("stem", {}).get("outputs") is None
    assert report.plan["layers"]["tail"]["outputs"] is not None
    assert report.verify_error is not None


class Standardised(nn.Conv2d):
    """As timm's ScaledStdConv2d: another forward, so that a zero filter is not what it seems."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize("kind", ["own forward", "weight norm", "shared"])
def test_layers_with_weights_of_another_kind_stay_whole(kind: str) -> None:
    model = made(Residual)
    if kind == "own forward":
        model.a = Standardised(16, 16, 3, padding=1)
    elif kind == "weight norm":
        torch.nn.utils.parametrizations.weight_norm(model.a)
    else:
        model.b.weight = model.a.weight
    before = model.a.weight.detach().clone()
    report = efx.channelprune(model, images(), amount=0.5, criterion="l1", bn_bias="drop")
    reason = {
        "own forward": "overrides forward",
        "weight norm": "its weight is parametrized",
        "shared": "shares its weight",
    }
    assert reason[kind] in report.protected["stem"]
    assert isinstance(report.model, Residual)
    if kind != "shared":
        assert torch.equal(report.model.a.weight, before)
        assert report.pruned_filters == pytest.approx(0.5, abs=0.01)


def test_a_single_channel_stays_and_says_so() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 1), nn.Sigmoid(), conv(1, 8), nn.ReLU(), conv(8, 2, 1))
    report = efx.channelprune(model, images(), amount=0.8, **BY_CHANNEL)
    assert report.protected["2"] == "it is a single channel"
    assert {"0", "4"} <= report.plan["layers"].keys()


def test_an_image_without_a_batch_is_named() -> None:
    with pytest.raises(ValueError, match="stem .Conv2d. reads it without a batch axis"):
        efx.channelprune(
            nn.Sequential(OrderedDict(stem=conv(3, 8), act=nn.ReLU())), images()[0], amount=0.5, **BY_CHANNEL
        )


def test_training_heads_are_cut_and_verified() -> None:
    class Aux(Net):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Any:
            if self.training:
                return super().forward(x), self.aux(self.stem(x).mean((2, 3)))
            return super().forward(x)

    report = efx.channelprune(made(Aux), images(), amount=0.6, ignore=["tail"], **BY_CHANNEL)
    assert isinstance(report.model, Aux)
    assert report.model.aux.in_features == report.model.stem.out_channels < 16
    report.model.train()(images())


def test_heads_with_dropout_are_compared_without_it() -> None:
    class Aux(Net):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Any:
            features = torch.dropout(self.stem(x), 0.0, self.training)
            features = nn.functional.dropout(features, 0.5, self.training)
            logits = self.head(torch.relu(self.tail(features)).mean((2, 3)))
            return (logits, self.aux(features.mean((2, 3)))) if self.training else logits

    report = efx.channelprune(made(Aux), images(), amount=0.5, **(BY_CHANNEL | {"ignore": "tail"}))
    assert isinstance(report.model, Aux)
    assert report.model.aux.in_features < 16


def test_heads_of_both_modes_are_cut() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.tail(self.stem(x))).mean((2, 3))
            return self.other(x) if self.training else self.head(x)

    report = efx.channelprune(made(Two), images(), amount=0.5, **(BY_CHANNEL | {"backend": "fx"}))
    assert isinstance(report.model, Two)
    assert report.model.other.in_features == report.model.head.in_features == report.model.tail.out_channels < 8
    assert report.model.train()(images()).shape == (2, 4)
