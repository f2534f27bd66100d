"""Surgery that fails halfway leaves the model as it was: tensors, attributes, banks, and the same Parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.nets import BY_CHANNEL, KINDS, PRUNABLE, check_same_state, images, made, state_of
from torch import nn

import explainfix_ext as efx
from explainfix_ext.prune.cut import plan as plans


def pruned_plan(net: str, kind: str, **options: Any) -> dict[str, Any]:
    return efx.channelprune(made(PRUNABLE[net], kind), images(), amount=0.6, **options).plan


def check_undone(model: nn.Module, fails: Callable[[], object], error: type[BaseException]) -> None:
    before, classes, output = state_of(model), repr(model), model(images())
    parameters = dict(model.named_parameters())
    with pytest.raises(error):
        fails()
    check_same_state(model, before)
    assert repr(model) == classes
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert torch.equal(model(images()), output)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "step", "part"),
    [
        (BY_CHANNEL, "cut_per_channel_", "per_channel"),
        ({"criterion": "l1", "structured": False}, "zero_filters_", "zeros"),
    ],
    ids=["cut", "zeros"],
)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_last_step_undoes_those_before(
    kind: str, options: Any, step: str, part: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = pruned_plan("residual", kind, **options)
    do, calls = getattr(plans, step), []

    def do_then_fail(*args: Any) -> None:
        do(*args)
        calls.append(args)
        if len(calls) == len(plan[part]):
            raise error

    monkeypatch.setattr(plans, step, do_then_fail)
    model = made(PRUNABLE["residual"], kind)
    check_undone(model, lambda: efx.apply_plan(model, plan), error)
    assert calls


def test_a_forced_kernel_that_cannot_run_the_smaller_bank_is_told_and_nothing_is_changed() -> None:
    """One group is left of a depthwise layer, which is then a plain one."""

    def net() -> nn.Module:
        torch.manual_seed(0)
        depthwise = efx.FixedConv2d(4, 4, 3, groups=4, init="dct2", seed=0, plan="depthwise")
        return nn.Sequential(nn.Conv2d(3, 4, 3), depthwise, nn.Conv2d(4, 2, 1)).eval()

    model, one = net(), {"inputs": [1], "outputs": [1]}
    plan = plans.empty_plan()
    plan["layers"] = {
        "0": {"shape": [4, 3, 3, 3], "inputs": None, "outputs": [1]},
        "1": {"shape": [4, 1, 3, 3], **one},
        "2": {"shape": [2, 4, 1, 1], "inputs": [1], "outputs": None},
    }
    check_undone(model, lambda: efx.apply_plan(model, plan), ValueError)
    plan["layers"]["1"] |= {"inputs": [1, 3], "outputs": [1, 3]}
    plan["layers"]["0"]["outputs"] = plan["layers"]["2"]["inputs"] = [1, 3]
    assert efx.apply_plan(model, plan)(images()).shape == (2, 2, 4, 4)


def test_pruning_in_place_that_fails_at_the_end_leaves_the_model() -> None:
    def add_a_layer(model: nn.Module, step: int) -> None:
        model.extra = nn.Linear(2, 2)

    model = made(PRUNABLE["plain"])
    steps = {"schedule": 2, "inplace": True, "amount": 0.6, **BY_CHANNEL}
    check_undone(model, lambda: efx.channelprune(model, images(), fine_tune=add_a_layer, **steps), ValueError)


def test_a_fill_that_fails_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("an initialisation that is no longer registered")

    monkeypatch.setattr("explainfix_ext.prune.cut.fill.make_bank", fail)
    model = made(PRUNABLE["plain"], "dct2")
    options = {"fill": "reset", "inplace": True, "amount": 0.6, "criterion": "l1", "structured": False}
    check_undone(model, lambda: efx.channelprune(model, images(), **options), ValueError)
