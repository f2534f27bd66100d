"""Branches beside spatial filters: 1x1, linear and transposed layers lose what they write into a channel that goes."""

from __future__ import annotations

import copy

import pytest
import torch
from support.nets import BY_CHANNEL, Net, conv, images, made
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.prune.cut.layers import by_output


class Reparametrised(nn.Module):
    """3x3 + 1x1 + identity, as in RepVGG. Without biases and norms a channel of zero filters is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(3, 16, 1, bias=False)
        self.dense, self.one = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.Conv2d(16, 16, 1, bias=False)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.first(x[:, :, 1:-1, 1:-1])
        return self.head((self.dense(x) + self.one(x) + x).relu())


class Scaled(Reparametrised):
    """A depthwise 1x1 beside a depthwise 3x3, as in MobileOne."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.one = nn.Conv2d(16, 16, 1, groups=16, bias=False)


class Ghost(Reparametrised):
    """Half of the channels of a 1x1, half of a depthwise convolution of these, as in GhostNet."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(16, 8, 1, bias=False)
        self.dense = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one((self.stem(x) + self.first(x[:, :, 1:-1, 1:-1])).relu())
        return self.head(torch.cat([x, self.dense(x)], 1))


class Upward(Reparametrised):
    """A grouped transposed convolution beside a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.ConvTranspose2d(16, 16, 1, groups=2, bias=False)


class Embedded(Reparametrised):
    """A linear layer adds to each channel, as a time embedding does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x) + self.embed(x.mean((2, 3)))[:, :, None, None]
        return self.head(self.dense(y).relu())


def zeroed(model: nn.Module, plan: dict) -> nn.Module:
    """Returns a copy in which every weight that writes a removed channel, or a filter of the plan, is zero."""
    model = copy.deepcopy(model)
    for name, cut in plan["layers"].items():
        module = model.get_submodule(name)
        for k in set(range(module.weight.shape[0])) - set(cut["outputs"] or range(module.weight.shape[0])):
            if isinstance(module, nn.ConvTranspose2d):
                part = by_output(module, torch.arange(module.weight[..., 0, 0].numel()).view(16, 8))[k]
                module.weight.data.flatten(2).view(-1)[part] = 0
            else:
                module.weight.data[k] = 0
    return model


@pytest.mark.parametrize("make", [Reparametrised, Scaled, Ghost, Upward, Embedded])
def test_branches_go_with_the_filters_beside_them(make: type[nn.Module]) -> None:
    model = made(make).double()
    x = images().double()
    report = efx.channelprune(model, x, amount=0.9, criterion="l1", granularity="channel")
    layers = report.plan["layers"]
    beside = {"Embedded": "embed"}.get(make.__name__, "one")
    assert len(layers[beside]["outputs"]) < model.get_submodule(beside).weight.shape[0]
    assert len(layers["stem"]["outputs"]) < 16
    assert report.pruned_filters > 0.85
    assert torch.allclose(report.model(x), zeroed(model, report.plan)(x), atol=1e-12)
    fresh = efx.apply_plan(copy.deepcopy(model), report.plan)
    fresh.load_state_dict(report.model.state_dict())


def test_rows_that_stay_are_zero_in_the_plan_and_stay_zero() -> None:
    """Of a channel that must stay, as its BatchNorm makes a constant of it, the 1x1's row is zero."""

    class Beside(Net):
        def __init__(self) -> None:
            super().__init__()
            self.one = conv(3, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.stem(x) + self.one(x))
            return self.head(self.tail(x).mean((2, 3)))

    model = made(Beside)
    report = efx.channelprune(model, images(), amount=0.9, criterion="l1", granularity="channel", round_to=16)
    assert report.plan["layers"] == {}
    assert {"stem", "one"} <= report.plan["zeros"].keys()
    rows = (report.model.one.weight == 0).flatten(1).all(1)
    assert bool(rows.any())
    assert torch.equal(rows, (report.model.stem.weight == 0).flatten(1).all(1))
    assert torch.equal(efx.apply_plan(copy.deepcopy(model), report.plan)(images()), report.model(images()))
    efx.keep_zeros(report.model, report.plan)
    report.model(images()).sum().backward()
    assert not bool(report.model.one.weight.grad[rows].any())
    assert bool(report.model.one.weight.grad[~rows].any())


def test_an_ignored_branch_holds_its_channels() -> None:
    model = made(Ghost)
    report = efx.channelprune(model, images(), amount=0.9, ignore=["first"], **BY_CHANNEL)
    assert report.plan["layers"].get("stem", {}).get("outputs") is None
    assert len(report.plan["layers"]["one"]["outputs"]) < 8
    with pytest.raises(ValueError, match="nothing to prune"):
        efx.channelprune(made(Reparametrised), images(), amount=0.5, ignore=["one"], **BY_CHANNEL)


class Shortcut(nn.Module):
    """A channel of the stem has a 1x1 beside it; those within the block have none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(3, 16, 1, bias=False)
        self.inner, self.outer = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.first(x[:, :, 1:-1, 1:-1])
        return self.head(self.outer(self.inner(x).relu()) + x)


def test_channels_with_rows_that_have_no_score_go_last() -> None:
    """While others are enough, the 1x1 keeps what it writes, though the filters beside it have the lowest scores."""
    model = made(Shortcut)
    scores = {name: torch.full((o, i), value) for name, o, i, value in
              (("stem", 16, 3, 0.0), ("inner", 32, 16, 1.0), ("outer", 16, 32, 1.0))}  # fmt: skip
    for amount, whole in ((0.5, True), (0.99, False)):
        report = efx.channelprune(model, images(), amount=amount, **BY_CHANNEL | {"criterion": scores})
        assert (report.plan["layers"].get("first", {}).get("outputs") is None) == whole
        assert report.pruned_filters > 0.9 * amount
