"""Which filters are set to zero: by amount, scope, weight and granularity, with those that are zero already."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.nets import Residual, Untraceable, conv, images, made
from torch import nn

import explainfix_ext as efx


@pytest.mark.parametrize("granularity", ["filter", "channel"])
@pytest.mark.parametrize("structured", [True, False])
def test_the_amount_is_kept_among_equal_scores_and_zeros(granularity: str, structured: bool) -> None:
    wide = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 32), nn.ReLU(), conv(32, 32), nn.ReLU(), conv(32, 4, 1))
    options: dict[str, Any] = {"granularity": granularity, "structured": structured}
    ones = {name: torch.ones(m.weight.shape[:2]) for name, m in wide.named_children() if isinstance(m, nn.Conv2d)}
    ones.pop("6")
    report = efx.channelprune(wide, images(), amount=0.1, criterion=ones, **options)
    if structured and granularity == "filter":  # of equal filters the first go: whole channels, which others read
        assert 0.1 <= report.pruned_filters < 0.35
    else:
        assert report.pruned_filters == pytest.approx(0.1, abs=0.03)
    if granularity == "filter":
        once = efx.channelprune(wide, images(), amount=0.5, criterion="random", structured=False)
        assert once.model is not None
        twice = efx.channelprune(once.model, images(), amount=0.6, criterion="random", structured=False, seed=1)
        assert twice.pruned_filters == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_filters_that_are_zero_already_count(granularity: str) -> None:
    model = made(Residual)
    efx.convert(model, "dct2", density=0.3, seed=0)
    options: dict[str, Any] = {"granularity": granularity, "structured": granularity == "channel"}
    with pytest.raises(ValueError, match="nothing to prune: 65.* of the filters are zero"):
        efx.channelprune(model, images(), amount=0.6, criterion="random", **options)


def test_unstructured_only_zeroes_filters() -> None:
    model = made(Residual, "dct2")
    report = efx.channelprune(model, images(), amount=0.75, criterion="l2", structured=False)
    assert report.verify_error is None
    assert report.plan["layers"] == {}
    assert report.pruned_filters == pytest.approx(0.75, abs=0.01)
    assert report.multiply_adds[1] < 0.5 * report.multiply_adds[0]
    assert report.model is not None
    # What cannot be traced can be zeroed.
    efx.channelprune(made(Untraceable), images(), amount=0.5, criterion="l1", structured=False)


def test_scope_layer_takes_the_same_share_of_each() -> None:
    report = efx.channelprune(made(Residual), images(), amount=0.5, criterion="random", scope="layer", structured=False)
    for name in ("stem", "a", "b", "tail"):
        assert report.after[name].nonzero == pytest.approx(report.before[name].filters / 2, abs=1)


def test_weighed_by_work_early_layers_lose_more() -> None:
    model = nn.Sequential(
        conv(3, 16), nn.ReLU(), conv(16, 16), nn.MaxPool2d(4), conv(16, 16), nn.ReLU(), conv(16, 4, 1)
    )
    options: dict[str, Any] = {"amount": 0.5, "criterion": "random", "structured": False}
    by_score, by_work = (efx.channelprune(model, images(), weigh=weigh, **options) for weigh in ("score", "work"))
    assert by_work.pruned_filters == pytest.approx(0.5, abs=0.01)
    assert by_work.after["2"].nonzero < by_score.after["2"].nonzero


def test_no_layer_loses_more_than_its_share() -> None:
    """Global scores would empty a layer of small weights."""
    model = made(Residual)
    with torch.no_grad():
        model.a.weight *= 1e-6
    report = efx.channelprune(model, images(), amount=0.5, criterion="l1", structured=False)
    assert report.after["a"].nonzero == 256 - 243  # 95 %
    few = efx.channelprune(model, images(), amount=0.99, criterion="l1", structured=False)
    assert min(few.after[name].nonzero for name in ("stem", "a", "b", "tail")) >= 1
    assert few.pruned_filters == pytest.approx(0.99, abs=2e-3)
