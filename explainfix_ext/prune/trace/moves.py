"""This module has the rule for operations that only move elements: reshapes, concatenations, splits, shuffles.

The operation runs once more on the ids in place of the numbers, which shows where every channel goes. Then the rule
looks for ties under which the operation would do the same in a pruned model; without such ties the channels must stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .builder import GraphBuilder
from .calls import Call
from .graph import components, first_of
from .places import Place, places
from .solve import solve
from .trials import moves_alike
from .values import Value, compact


def move(build: GraphBuilder, call: Call, values: list[Value], result: Any) -> Any:
    """Moves the ids of channels with the elements, for an operation that only moves elements."""
    if any(v.ids is not None and not v.tensor.is_floating_point() for v in values):
        return _held(build, call, values, result, "takes positions that are computed from the data")
    values = [build.constant(v.tensor) if v.ids is None and v.tensor.is_floating_point() else v for v in values]
    before = [value.tensor if value.ids is None else value.spread() for value in values]  # index tensors stay as is
    moved = call(before)
    after = [moved] if isinstance(moved, Tensor) else list(moved)
    sizes = places(call, before[0], after) if call.numbers else []
    shares = (0.5, 0.3, 0.7, 0.5) if call.numbers else (0.5,)  # a number may fit some trial by chance
    for there, new in _possible_ties(build, call, values[0], before, after, sizes):
        if moves_alike(_sized(build, call, sizes, new), before, after, [*there, *new], shares):
            build.graph.ties += new
            _note_numbers(build, call, before, sizes)
            if isinstance(result, Tensor):
                return Value(result, compact(moved))
            return tuple(Value(t, compact(ids)) for t, ids in zip(result, after, strict=True))
    return _held(build, call, values, result, "has positions or sizes written in the code")


def _note_numbers(build: GraphBuilder, call: Call, before: list[Tensor], sizes: list[Place]) -> None:
    """Notes what numbers must count, and keeps what others are computed from, unless the trials saw it go."""
    if not call.numbers:
        return
    build.graph.sizes += [place.written for place in sizes]
    placed = {place.node for place in sizes}
    groups = build.graph.tied_groups()
    seen = groups[torch.cat([t.reshape(-1) for t in before]).long().unique()]
    for node, number in call.numbers.items():
        if node not in placed:
            build.graph.fixed.update(number.attributes)
        for ids in number.counts(build.graph.count):
            build.graph.protect(ids[~torch.isin(groups[ids], seen)], f"{call} computes with their number")


def _held(build: GraphBuilder, call: Call, values: list[Value], result: Any, reason: str) -> Any:
    build.hold_numbers(call.numbers.values(), f"{call} {reason}")
    return build.hold(values, result, f"{call} {reason}")


def _sized(
    build: GraphBuilder, call: Call, sizes: list[Place], new: list[Tensor]
) -> Callable[[list[Tensor], Tensor], Any]:
    """Returns the operation as the pruned model runs it, with the numbers that the code or the plan computes then."""
    if not call.numbers:
        return lambda tensors, gone: call(tensors)
    groups = components(build.graph.count, new, build.graph.tied_groups())

    def run(tensors: list[Tensor], gone: Tensor) -> Any:
        flags = torch.isin(groups, groups[gone])
        changed, unsolved = solve([place.written for place in sizes], flags)
        if unsolved:
            raise ValueError("no values of the attributes give the sizes")
        return call(tensors, {one: number.again(flags, changed) for one, number in call.numbers.items()})

    return run


def _possible_ties(
    build: GraphBuilder, call: Call, value: Value, before: list[Tensor], after: list[Tensor], sizes: list[Place]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yields (ties that exist, new ties to try), in the order in which to try them.

    New ties join the groups of a shuffle, or the parts of a split position by position, or stretches of the length that
    sizes have in common, or all that lies at one position along an axis of a result.
    """
    yield [], []  # most operations need no ties, and to find those that exist is slow
    there = _ties_within(build, before)
    yield there, []
    groups = call.shuffled_groups
    if groups and value.axes() == [1]:
        grouped = value.along(1).reshape(groups, -1)
        yield there, [_pairs(grouped[:1], grouped)]
        return
    if (call.splits or call.chunks) and len({part.shape for part in after}) == 1:
        first, *others = (part.long() for part in after)
        yield there, [_pairs(first, other) for other in others]
    if not call.reshapes:
        for axis in {place.axis for place in sizes}:
            rows = compact(before[0]).movedim(axis, 0).flatten(1)
            unit = math.gcd(len(rows), *(len(place.written.rows) for place in sizes if place.axis == axis))
            if unit < len(rows):
                stretches = rows.reshape(len(rows) // unit, -1)
                yield there, [_pairs(stretches[:1], stretches)]
        if call.splits or call.chunks:
            return
    for part in after:
        ids = compact(part)
        for axis in sorted((a for a, size in enumerate(ids.shape) if size > 1), key=lambda a: -ids.shape[a]):
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
