"""This module prunes in several steps, for `channelprune(schedule=..., fine_tune=...)`.

Each step scores what the step before left, and fine-tuning may come in between.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from explainfix_ext.prune.cut.plan import apply_plan, compose_plans

from .masking import NothingToPrune
from .report import PruneReport
from .settings import Settings

FineTune = Callable[[nn.Module, int], object]


def amounts_of(schedule: int | Sequence[float], amount: float) -> list[float]:
    """Returns the amount of every step, the last of which is `amount`.

    Args:
        schedule: the amounts; or a number of steps, each of which keeps the same share of what is left.
        amount: share of the filters that are zero in the end.

    Raises:
        ValueError: there are no steps, or their amounts do not rise to `amount`.

    Examples:
        >>> [round(a, 3) for a in amounts_of(2, 0.99)]
        [0.9, 0.99]
    """
    if isinstance(schedule, int):
        if schedule < 1:
            raise ValueError(f"schedule must be at least 1 step, got {schedule}")
        return [1 - (1 - amount) ** (step / schedule) for step in range(1, schedule)] + [amount]
    amounts = [*schedule] if schedule and schedule[-1] == amount else [*schedule, amount]
    if any(b <= a for a, b in zip([0.0, *amounts], amounts, strict=False)):
        raise ValueError(f"schedule must rise to amount = {amount}, got {list(schedule)}")
    return amounts


def prune_in_steps(
    prune: Callable[[nn.Module, tuple[Any, ...], Settings], PruneReport],
    model: nn.Module,
    inputs: tuple[Any, ...],
    settings: Settings,
    *,
    amounts: Sequence[float],
    fine_tune: FineTune | None,
) -> PruneReport:
    """Prunes in steps, and returns one report for all: the plans composed, and the largest verification error.

    Args:
        prune: does one step, in place.
        model, inputs: the model and its positional arguments.
        settings: the arguments of `channelprune`; their `amount` is that of the last step.
        amounts: for every step, the share of the filters of `model` that are zero after it.
        fine_tune: (pruned model, number of the step that is done), called between two steps.
    """
    current = copy.deepcopy(model)
    whole: PruneReport | None = None
    for step, amount in enumerate(amounts):
        last = step + 1 == len(amounts)
        if whole is not None:  # as a share of the filters that are left
            left, total = (sum(side[name].filters for name in whole.layers) for side in (whole.after, whole.before))
            share = left / max(1, total)
            amount = max(0.0, 1 - (1 - amount) / share)
        now = dataclasses.replace(settings, amount=amount, inplace=True, fill=settings.fill if last else "none")
        try:
            report = prune(current, inputs, now)
            whole = report if whole is None else _joined(whole, report)
        except NothingToPrune:
            if last and whole is None:
                raise
        if fine_tune is not None and not last:
            fine_tune(current, step)
    assert whole is not None
    whole.amount, whole.original = settings.amount, None if settings.inplace else model
    if settings.inplace:
        _check_loads(copy.deepcopy(model), whole, current)
        apply_plan(model, whole.plan).load_state_dict(current.state_dict())
    whole.model = model if settings.inplace else current
    return whole


def _check_loads(fresh: nn.Module, whole: PruneReport, current: nn.Module) -> None:
    """Raises ValueError unless `fresh`, pruned by the plan, takes the state_dict of the model that the steps made."""
    try:
        apply_plan(fresh, whole.plan).load_state_dict(current.state_dict())
    except RuntimeError as error:
        text = f"{' '.join(str(error).split()):.500}"  # it names every tensor
        raise ValueError(f"fine_tune must change numbers only, and the model has another state_dict: {text}") from None


def _joined(first: PruneReport, second: PruneReport) -> PruneReport:
    errors = [error for error in (first.verify_error, second.verify_error) if error is not None]
    return dataclasses.replace(
        second,
        plan=compose_plans(first.plan, second.plan),
        before=first.before,
        verify_error=max(errors) if errors else None,
        parameters=(first.parameters[0], second.parameters[1]),
    )
