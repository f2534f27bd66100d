"""channelprune as a whole: channels go and nothing else changes, on every kind of network; bad input is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.nets import BY_CHANNEL, PRUNABLE, Hidden, Net, Residual, check_same_state, images, made, state_of
from torch import nn

import explainfix_ext as efx


@pytest.mark.parametrize("kind", ["learned", "dct2", "low rank", "coefficients", "pointwise"])
@pytest.mark.parametrize("name", PRUNABLE)
def test_channels_go_and_nothing_else_changes(name: str, kind: str) -> None:
    model = made(PRUNABLE[name], kind)
    before, cut = state_of(model), set()
    for amount in (0.3, 0.6, 0.9):
        for bn_bias in ("keep", "drop", "fold"):
            report = efx.channelprune(model, images(), amount=amount, **(BY_CHANNEL | {"bn_bias": bn_bias}))
            assert report.verify_error is None or report.verify_error < 1e-5
            cut |= {layer for layer, entry in report.plan["layers"].items() if entry["outputs"] is not None}
    # What comes before the middle goes, too; but a learned 1x1 is no spatial layer, nor is what reads it here.
    assert cut & {"stem", "a"} or (kind == "pointwise" and name in ("transposed", "last", "layer_norm"))
    check_same_state(model, before)


def test_inplace_and_dry_run() -> None:
    model = made(Residual)
    before = state_of(model)
    looked = efx.channelprune(model, images(), amount=0.6, dry_run=True, **BY_CHANNEL)
    assert looked.model is None
    check_same_state(model, before)
    other = efx.channelprune(model, images(), amount=0.6, **BY_CHANNEL)
    same = efx.channelprune(model, images(), amount=0.6, inplace=True, **BY_CHANNEL)
    assert same.model is model
    assert other.model is not None
    assert other.plan == same.plan == looked.plan
    assert torch.equal(model(images()), other.model(images()))
    with pytest.raises(ValueError, match="needs both models"):
        same.time(images())
    assert set(other.time(images(), rounds=1)) == {"inference", "training step"}


def test_on_device(device: str) -> None:
    model = made(Residual, "dct2").to(device)
    report = efx.channelprune(model, images().to(device), amount=0.6, **BY_CHANNEL)
    assert report.model is not None
    assert {p.device.type for p in report.model.parameters()} == {device}
    assert report.model(images().to(device)).device.type == device


def test_memory_savers_are_pruned_like_others() -> None:
    model = made(Residual, "dct2")
    plain = efx.channelprune(model, images(), amount=0.6, **BY_CHANNEL)
    efx.save_memory(model, "recompute")
    saving = efx.channelprune(model, images(), amount=0.6, **BY_CHANNEL)
    assert plain.plan == saving.plan
    assert saving.model is not None
    assert plain.model is not None
    for pruned in (plain.model, saving.model):
        pruned.train()
        pruned(images()).square().sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (plain.model, saving.model)]  # type: ignore[union-attr]
    assert relative_error(gradients[1], gradients[0]) < 1e-4


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "amount 1": ({"amount": 1.0}, r"amount must be in \[0, 1\), got 1.0"),
    "amount negative": ({"amount": -0.1}, r"amount must be in \[0, 1\), got -0.1"),
    "amount nan": ({"amount": float("nan")}, r"amount must be in \[0, 1\), got nan"),
    "criterion": ({"criterion": "l3"}, "criterion must be one of explainfix, taylor, l1.*got 'l3'"),
    "no data": ({"criterion": "explainfix"}, "criterion 'explainfix' needs data"),
    "empty data": ({"criterion": "explainfix", "data": []}, "data is empty"),
    "amount text": ({"amount": "0.5"}, r"amount must be in \[0, 1\), got '0.5'"),
    "any and fold": ({"agree": "any", "bn_bias": "fold"}, 'bn_bias must be "drop" or "keep" with agree="any"'),
    "one pass of data": ({"data": iter([]), "schedule": 2}, "data must be iterable more than once"),
    "ignore one": ({"ignore": "*"}, "ignore must leave a spatial convolution"),
    "scope": ({"scope": "all"}, "scope must be one of global, layer, got 'all'"),
    "granularity": ({"granularity": "pixel"}, "granularity must be one of filter, channel"),
    "bn_bias": ({"bn_bias": "lose"}, "bn_bias must be one of keep, drop, fold"),
    "weigh": ({"weigh": "time"}, "weigh must be one of score, work"),
    "fill": ({"fill": "ones"}, "fill must be one of none, reset, fill_zero"),
    "round_to": ({"round_to": 0}, "round_to must be an integer of at least 1, got 0"),
    "compat": ({"compat": "tf"}, 'compat must be None or "paper"'),
    "ignore": ({"ignore": ["*"]}, "ignore must leave a spatial convolution"),
    "scores missing": ({"criterion": {"stem": torch.ones(16, 3)}}, "a score for every spatial layer, tail is missing"),
    "scores shape": ({"criterion": lambda n, m: torch.ones(3)}, r"scores of stem must be \[O, I/groups\] = \[16, 3\]"),
    "scores nan": (
        {"criterion": lambda name, m: torch.full(m.weight.shape[:2], torch.nan)},
        "saliency of stem is not finite",
    ),
    "scores zero": ({"criterion": lambda name, m: torch.zeros(m.weight.shape[:2])}, "saliency is zero everywhere"),
    "nothing": ({"amount": 0.0}, "nothing to prune: 0.0% of the filters are zero"),
    "schedule falls": ({"schedule": [0.6, 0.4]}, "schedule must rise to amount = 0.5"),
    "schedule none": ({"schedule": 0}, "schedule must be at least 1 step"),
    "dry schedule": ({"schedule": 2, "dry_run": True}, "dry_run looks one step ahead"),
    "image": ({"example_inputs": torch.zeros(2, 4, 8, 8)}, r"model does not run on example_inputs \[\[2, 4, 8, 8\]\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_changes(case: str) -> None:
    changes, message = BAD[case]
    model = made(Net)
    before = state_of(model)
    arguments: dict[str, Any] = {
        "example_inputs": images(),
        "amount": 0.5,
        "criterion": "l1",
        "inplace": True,
    } | changes
    with pytest.raises(ValueError, match=message):
        efx.channelprune(model, **arguments)
    check_same_state(model, before)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="no spatial convolution"):
        efx.channelprune(nn.Sequential(nn.Conv2d(3, 4, 1)), images(), amount=0.5, criterion="l1")
    with pytest.raises(ValueError, match="cannot be traced by torch.fx"):
        efx.channelprune(made(Hidden), images(), amount=0.5, criterion="l1", backend="fx")
    zeros = made(Net)
    with torch.no_grad():
        for m in zeros.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.zero_()
    with pytest.raises(ValueError, match="saliency is zero everywhere"):
        efx.channelprune(zeros, images(), amount=0.5, criterion="l1")
    broken = made(Net)
    with torch.no_grad():
        broken.tail.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="saliency of tail is not finite"):
        efx.channelprune(broken, images(), amount=0.5, criterion="l1")


def test_channels_are_the_default_for_fast_transforms() -> None:
    def net(init: str) -> nn.Sequential:
        layers = [nn.Conv2d(3, 16, 1), efx.FixedConv2d(16, 16, 3, init=init, seed=0), nn.Conv2d(16, 4, 1)]
        return nn.Sequential(*layers)

    options: dict[str, Any] = {"amount": 0.5, "criterion": "random", "bn_bias": "drop"}
    report = efx.channelprune(net("hadamard"), images(), **options)
    assert report.model is not None
    assert report.model[1].bank.hadamard is not None
    assert report.parameters[1] < report.parameters[0]
    plan = efx.channelprune(net("dct2"), images(), **options).plan
    assert plan == efx.channelprune(net("dct2"), images(), granularity="filter", **options).plan


def test_the_report_says_why_no_channel_went() -> None:
    def layer(inputs: int) -> list[nn.Module]:
        norm = nn.BatchNorm2d(16)
        nn.init.ones_(norm.bias)
        return [efx.FixedConv2d(inputs, 16, 3, init="hadamard", seed=0, pointwise=True), norm, nn.ReLU()]

    model = nn.Sequential(*layer(3), *layer(16), nn.Conv2d(16, 4, 1))
    options: dict[str, Any] = {"amount": 0.5, "criterion": "random"}
    kept, dropped = (efx.channelprune(model, images(), bn_bias=bias, **options) for bias in ("keep", "drop"))
    assert kept.parameters[0] == kept.parameters[1] > dropped.parameters[1]
    assert ['bn_bias="drop" forgets them' in str(report) for report in (kept, dropped)] == [True, False]


def test_a_plan_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    report, path = efx.channelprune(made(Residual), images(), amount=0.6, **BY_CHANNEL), tmp_path / "plan.json"
    report.save_plan(path)
    assert json.loads(path.read_text()) == report.plan
    path.write_text("before")
    report.plan["layers"]["stem"]["outputs"] = object()  # what JSON cannot hold
    with pytest.raises(TypeError):
        report.save_plan(path)
    (tmp_path / "plan.json.tmp").mkdir()  # in the way of the file that is renamed at last
    report.plan["layers"].clear()
    with pytest.raises(IsADirectoryError):
        report.save_plan(path)
    assert path.read_text() == "before"
