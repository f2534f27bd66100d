"""Pruning plans: a fresh model, a model of another kind, a plan of an earlier version of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.nets import BY_CHANNEL, PRUNABLE, Net, Residual, check_same_state, images, made, state_of
from torch import nn

import explainfix_ext as efx

OLD_PLANS = Path(__file__).parents[1] / "data" / "plans_version_1.json"


def test_a_plan_makes_a_fresh_model_that_loads_the_state() -> None:
    report = efx.channelprune(made(Residual, "dct2"), images(), amount=0.6, **BY_CHANNEL)
    assert report.model is not None
    for kind in ("dct2", "learned"):
        fresh = efx.apply_plan(made(Residual, kind), json.loads(json.dumps(report.plan)))
        if kind == "dct2":
            fresh.load_state_dict(report.model.state_dict())
            assert torch.equal(fresh(images()), report.model(images()))
        assert [m.in_channels for m in fresh.modules() if isinstance(m, nn.Conv2d)] == [
            m.in_channels for m in report.model.modules() if isinstance(m, nn.Conv2d)
        ]


def test_a_plan_of_another_model_is_refused_and_nothing_is_changed() -> None:
    plan = efx.channelprune(made(Residual), images(), amount=0.6, **BY_CHANNEL).plan
    other = made(lambda: Net(width=16, tail=16))
    before = state_of(other)
    with pytest.raises(
        ValueError, match=r"plan is of another model: a must have weight \[16, 16, 3, 3\].*no such layer"
    ):
        efx.apply_plan(other, plan)
    wide = made(Residual)
    wide.b = nn.Conv2d(16, 16, 5, padding=2)
    with pytest.raises(ValueError, match=r"b must have weight \[16, 16, 3, 3\], got \[16, 16, 5, 5\]"):
        efx.apply_plan(wide, plan)
    with pytest.raises(ValueError, match="plan must be the plan of a PruneReport"):
        efx.apply_plan(other, {"layers": {}})
    with pytest.raises(ValueError, match="version 1, got 2"):
        efx.apply_plan(other, plan | {"version": 2})
    check_same_state(other, before)
    damaged = json.loads(json.dumps(plan))
    damaged["layers"]["a"]["outputs"][0] = 99
    model = made(Residual)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"plan must keep outputs of a in \[0, 16\)"):
        efx.apply_plan(model, damaged)
    check_same_state(model, before)
    filters = efx.channelprune(made(Residual), images(), amount=0.5, criterion="l1", structured=False)
    with pytest.raises(ValueError, match="model must be pruned by the plan: "):
        efx.keep_zeros(made(Residual), filters.plan)


def numbered(model: nn.Module) -> nn.Module:
    """The model with Parameters and buffers that no random generator has a part in."""
    with torch.no_grad():
        for i, tensor in enumerate([*model.parameters(), *model.buffers()]):
            if tensor.is_floating_point():
                tensor.copy_((torch.arange(tensor.numel()).reshape(tensor.shape) + i).sin().abs() / 4 + 0.1)
    return model.eval()


@pytest.mark.parametrize("case", json.loads(OLD_PLANS.read_text())["cases"], ids=lambda case: case["net"])
def test_a_plan_written_by_an_earlier_version_gives_the_same_model(case: dict[str, Any]) -> None:
    """The file names the commit that wrote the plans, and has the outputs of the models that it pruned by them."""
    model = PRUNABLE[case["net"]]()
    if case["init"]:
        efx.convert(model, case["init"], seed=0)
    pruned = efx.apply_plan(numbered(model), case["plan"])
    x = (torch.arange(2 * 3 * 8 * 8) * 0.7).sin().reshape(2, 3, 8, 8)
    assert relative_error(pruned(x).flatten(), torch.tensor(case["output"])) < 1e-5
