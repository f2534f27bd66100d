"""This module has the rule for operations that only move elements: reshapes, concatenations, splits, shuffles.

The operation runs once more on the ids in place of the numbers, which shows where every channel goes. Then the rule
looks for ties under which the operation would do the same in a pruned model; without such ties the channels must stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .builder import GraphBuilder
from .calls import Call
from .graph import first_of
from .trials import moves_alike
from .values import Value, compact


def move(build: GraphBuilder, call: Call, values: list[Value], result: Any) -> Any:
    """Moves the ids of channels with the elements, for an operation that only moves elements."""
    if any(v.ids is not None and not v.tensor.is_floating_point() for v in values):
        return build.hold(values, result, f"{call} takes positions that are computed from the data")
    values = [build.constant(v.tensor) if v.ids is None and v.tensor.is_floating_point() else v for v in values]
    before = [value.tensor if value.ids is None else value.spread() for value in values]  # index tensors stay as is
    moved = call(before)
    after = [moved] if isinstance(moved, Tensor) else list(moved)
    calls = list(call.variants(len(after)))
    for there, new in _possible_ties(build, call, values[0], before, after):
        if moves_alike(calls, before, after, [*there, *new]):
            build.graph.ties += new
            if isinstance(result, Tensor):
                return Value(result, compact(moved))
            return tuple(Value(t, compact(ids)) for t, ids in zip(result, after, strict=True))
    return build.hold(values, result, f"{call} has positions or sizes written in the code")


def _possible_ties(
    build: GraphBuilder, call: Call, value: Value, before: list[Tensor], after: list[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yields (ties that exist, new ties to try), in the order in which to try them.

    New ties join the groups of a shuffle, or the parts of a split position by position, or all that lies at one
    position along an axis of a result.
    """
    yield [], []  # most operations need no ties, and to find those that exist is slow
    there = _ties_within(build, before)
    yield there, []
    groups = call.shuffled_groups
    if groups and value.axes() == [1]:
        grouped = value.along(1).reshape(groups, -1)
        yield there, [_pairs(grouped[:1], grouped)]
    elif call.splits:
        if len({part.shape for part in after}) == 1:
            first, *others = (part.long() for part in after)
            yield there, [_pairs(first, other) for other in others]
        return
    for part in after:
        ids = compact(part)
        for axis in (axis for axis, size in enumerate(ids.shape) if size > 1):
            rows = ids.movedim(axis, 0).flatten(1)
            yield there, [_pairs(rows[:, :1], rows)]


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    """Returns the pairs (2, n) of ids that stand at the same place; `a` expands to the shape of `b`."""
    return torch.stack([a.expand_as(b).reshape(-1), b.reshape(-1)])


def _ties_within(build: GraphBuilder, before: list[Tensor]) -> list[Tensor]:
    """Returns the ties that exist between the ids in `before`, as pairs (id, the first of its group)."""
    known = torch.cat([t.reshape(-1) for t in before]).long().unique()
    groups = build.graph.tied_groups()[known]
    _, inverse = groups.unique(return_inverse=True)
    return [torch.stack([known, known[first_of(inverse)]])]
