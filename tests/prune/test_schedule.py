"""Pruning in steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.nets import BY_CHANNEL, Residual, conv, images, made
from torch import nn

import explainfix_ext as efx


def test_ignored_layers_do_not_count_in_a_schedule() -> None:
    model = nn.Sequential(*(layer for _ in range(4) for layer in (conv(16, 16), nn.ReLU())), conv(16, 4, 1))
    x = torch.randn(2, 16, 8, 8)
    options: dict[str, Any] = BY_CHANNEL | {"ignore": ["0", "2"], "amount": 0.6}
    shares = [efx.channelprune(model, x, schedule=steps, **options).pruned_filters for steps in (1, 2, 4)]
    assert max(shares) - min(shares) < 0.06


@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_schedule_reaches_the_amount_and_composes_plans(granularity: str) -> None:
    model, seen = made(Residual, "dct2"), []

    def fine_tune(pruned: nn.Module, step: int) -> None:
        seen.append((step, sum(p.numel() for p in pruned.parameters())))
        with torch.no_grad():
            for p in pruned.parameters():
                p += 0.01

    options: dict[str, Any] = {"criterion": "random", "bn_bias": "drop", "granularity": granularity}
    report = efx.channelprune(model, images(), amount=0.8, schedule=[0.4, 0.6], fine_tune=fine_tune, **options)
    assert [step for step, _ in seen] == [0, 1]
    assert report.amount == 0.8
    assert 0.795 < report.pruned_filters < 0.9
    assert report.verify_error is None or report.verify_error < 1e-5
    fresh = efx.apply_plan(copy.deepcopy(model), report.plan)
    assert report.model is not None
    fresh.load_state_dict(report.model.state_dict())
    assert torch.equal(fresh(images()), report.model(images()))
    same = efx.channelprune(model, images(), amount=0.8, schedule=3, inplace=True, **options)
    assert same.model is model
    assert same.parameters[1] == sum(p.numel() for p in model.parameters()) + sum(
        m.bank.steering.numel() for m in model.modules() if isinstance(m, efx.FixedConv2d)
    )
