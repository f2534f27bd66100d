"""Which channels can go: constants, ties, what nobody reads, and how many must be left."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.nets import BY_CHANNEL, Net, Residual, conv, images, made
from torch import Tensor, nn

import explainfix_ext as efx


def independent(model: nn.Module, scores: dict[str, Tensor]) -> nn.Module:
    """The model with the filters of score 0 set to zero, by hand."""
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, score in scores.items():
            masked.get_submodule(name).weight[score == 0] = 0  # type: ignore[index,operator]
    return masked


def test_what_is_added_to_a_zero_channel_keeps_it_alive() -> None:
    """Also a single channel, which is spread over all: nothing here is a constant that "drop" may forget."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.z, self.t = nn.Conv2d(3, 8, 3, padding=1, bias=False), conv(3, 8), conv(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.t(torch.relu(self.a(x) + self.z(x).mean(1, keepdim=True)))

    model = made(Sum)
    scores = {"a": torch.ones(8, 3), "z": torch.ones(8, 3), "t": torch.ones(4, 8)}
    scores["a"][:4] = 0
    report = efx.channelprune(model, images(), amount=12 / 80, criterion=scores, bn_bias="drop")
    assert report.model is not None
    assert relative_error(report.model(images()), independent(model, scores)(images())) < 1e-5


@pytest.mark.parametrize("bn_bias", ["keep", "drop", "fold"])
def test_a_mask_that_is_zero_in_the_example_is_no_constant(bn_bias: str) -> None:
    class Masked(Net):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            x = torch.relu(self.bn(self.stem(x))) * mask
            return self.head(torch.relu(self.tail(x)).mean((2, 3)))

    model = made(Masked)
    nn.init.constant_(model.bn.bias, 1)
    scores = {"stem": torch.ones(16, 3), "tail": torch.ones(8, 16)}
    scores["stem"][:5] = 0
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    example = (images(), mask)
    report = efx.channelprune(model, example, amount=15 / 176, criterion=scores, bn_bias=bn_bias)
    assert report.model is not None
    if bn_bias != "drop":
        expected = independent(model, scores)(images(), ~mask)
        assert relative_error(report.model(images(), ~mask), expected) < 1e-5


def test_models_that_do_not_run_in_float64_can_be_folded() -> None:
    class Single(Net):
        def middle(self, x: Tensor) -> Tensor:
            return x.float()

    assert efx.channelprune(made(Single), images(), amount=0.5, **(BY_CHANNEL | {"bn_bias": "fold"})).plan["layers"]


def test_a_residual_channel_goes_only_if_all_agree() -> None:
    model = made(Residual)
    scores = {name: torch.rand(m.weight.shape[:2]) + 1 for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for name in ("a", "b", "stem"):
        scores[name][3] = 0
    share = 3 * 16 / sum(s.numel() for s in scores.values())
    all_three = efx.channelprune(model, images(), amount=share, criterion=scores, bn_bias="drop")
    assert 3 not in all_three.plan["layers"]["stem"]["outputs"]
    scores["a"][3] = 2
    two = efx.channelprune(model, images(), amount=share * 2 / 3, criterion=scores, bn_bias="drop")
    assert "stem" not in two.plan["layers"]
    paper = efx.channelprune(model, images(), amount=share * 2 / 3, criterion=scores, compat="paper")
    assert 3 not in paper.plan["layers"]["stem"]["outputs"]


def test_an_input_that_no_filter_reads_goes() -> None:
    """Exactly, with no word about BatchNorm: what is not read does not matter."""
    model = made(Net)
    scores = {"stem": torch.ones(16, 3), "tail": torch.ones(8, 16)}
    scores["tail"][:, [2, 5]] = 0
    report = efx.channelprune(model, images(), amount=16 / 176, criterion=scores)
    assert report.plan["layers"]["stem"]["outputs"] == [k for k in range(16) if k not in (2, 5)]
    assert report.plan["per_channel"]["bn"]["channels"] == 16
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.tail.weight[:, [2, 5]] = 0
    assert report.model is not None
    assert relative_error(report.model(images()), expected(images())) < 1e-6


def test_constants_are_kept_dropped_or_folded() -> None:
    """A channel of zero filters behind BatchNorm is a constant, which a 1x1 layer can take into its bias."""

    class Bottleneck(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(16, 16, 1, bias=False)

        def middle(self, x: Tensor) -> Tensor:
            return self.mix(x)

    model = made(Bottleneck)
    nn.init.constant_(model.bn.bias, 3)  # ReLU leaves it
    masked = copy.deepcopy(model)
    options = {"criterion": "l1", "granularity": "channel", "ignore": ["tail"]}
    kept = efx.channelprune(model, images(), amount=0.5, bn_bias="keep", **options)
    dropped = efx.channelprune(model, images(), amount=0.5, bn_bias="drop", **options)
    folded = efx.channelprune(model, images(), amount=0.5, bn_bias="fold", **options)
    assert "stem" not in kept.plan["layers"]
    assert len(dropped.plan["layers"]["stem"]["outputs"]) == 8
    assert len(folded.plan["layers"]["stem"]["outputs"]) == 8
    assert isinstance(folded.model, Bottleneck)
    assert folded.model.mix.bias is not None
    with torch.no_grad():
        gone = [k for k in range(16) if k not in folded.plan["layers"]["stem"]["outputs"]]
        masked.stem.weight[gone] = 0
        masked.stem.bias[gone] = model.stem.bias[gone]
    assert relative_error(folded.model(images()), masked(images())) < 1e-5
    assert dropped.model is not None
    assert relative_error(dropped.model(images()), masked(images())) > 1e-3
    # The bias belongs to the plan: a fresh model gets it, too.
    fresh = efx.apply_plan(copy.deepcopy(model), json.loads(json.dumps(folded.plan)))
    assert torch.equal(fresh(images()), folded.model(images()))


def test_round_to_and_min_channels() -> None:
    options: dict[str, Any] = BY_CHANNEL | {"amount": 0.9}
    report = efx.channelprune(made(Net), images(), round_to=4, **options)
    assert report.model is not None
    assert isinstance(report.model, Net)
    assert report.model.stem.out_channels % 4 == 0
    assert efx.channelprune(made(Net), images(), min_channels=5, **options).after["stem"].out_channels >= 5
