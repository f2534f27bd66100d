"""What layers store and compute: one count of multiply-adds for summary and report, held against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.nets import BY_CHANNEL, KINDS, PRUNABLE, Net, Residual, images, made
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import explainfix_ext as efx
from explainfix_ext.nn.summary import multiply_adds
from explainfix_ext.prune.costs import layer_costs, stored_numbers


@pytest.mark.parametrize("name", ["residual", "groups", "transposed", "flatten_linear", "last", "pixel_shuffle"])
def test_plain_layers_count_what_torch_counts(name: str) -> None:
    model = made(PRUNABLE[name])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images())
    counted = sum(cost.multiply_adds for cost in layer_costs(model, (images(),)).values())
    assert 2 * counted == counter.get_total_flops()  # a multiplication and an addition


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "learned"])
def test_summary_and_report_count_alike(kind: str) -> None:
    model = made(Residual, kind)
    report = efx.channelprune(model, images(), amount=0.5, dry_run=True, **BY_CHANNEL)
    layers = efx.summary(model, tuple(images().shape)).layers
    assert {layer.name for layer in layers} == {"stem", "a", "b", "tail"}
    assert {layer.name: layer.multiply_adds for layer in layers} == {
        layer.name: report.before[layer.name].multiply_adds for layer in layers
    }


def test_a_learned_1x1_counts_as_the_layer_that_it_is() -> None:
    shape, options = (2, 3, 8, 8), {"init": "dct2", "seed": 0, "bias": False}
    inside = nn.Sequential(efx.FixedConv2d(3, 8, 3, pointwise=True, **options))
    beside = nn.Sequential(efx.FixedConv2d(3, 8, 3, **options), nn.Conv2d(8, 8, 1, bias=False))
    (layer,) = efx.summary(inside, shape).layers
    (alone,) = efx.summary(beside, shape).layers
    assert layer.multiply_adds is not None
    assert alone.multiply_adds is not None
    assert layer.multiply_adds - alone.multiply_adds == multiply_adds(beside[1], 2 * 6 * 6)
    assert layer.dense_multiply_adds == alone.dense_multiply_adds
    costs = [sum(c.multiply_adds for c in layer_costs(m, (torch.randn(shape),)).values()) for m in (inside, beside)]
    assert costs == [layer.multiply_adds] * 2
    assert stored_numbers(inside) == stored_numbers(beside)


def test_learned_and_fixed_coefficients_store_as_many_numbers() -> None:
    fixed, learned = made(Net, "low rank"), made(Net)
    efx.convert(learned, "ghaar4_s1", seed=0, learn_coeff=True)
    assert stored_numbers(fixed) == stored_numbers(learned)
    costs: list[dict[str, Any]] = [layer_costs(model, (images(),)) for model in (fixed, learned)]
    assert {name: cost.parameters for name, cost in costs[0].items()} == {
        name: cost.parameters for name, cost in costs[1].items()
    }
