"""This module finds out what the numbers among an operation's arguments count: the positions that a split, a slice or a
reshape takes. So it is known which value each must have when some of the positions are gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from .calls import Call
from .numbers import Written
from .values import compact


@dataclass(frozen=True)
class Place:
    """Holds a number among an operation's arguments: its node, what it counts, and along which axis."""

    node: fx.Node
    written: Written
    axis: int


def places(call: Call, before: Tensor, after: list[Tensor]) -> list[Place]:
    """Finds the numbers among the arguments of an operation that moves elements.

    Args:
        call: the operation.
        before: ids of every element of its first operand.
        after: ids of every element of its results.
    """
    found = []
    for node, ids, axis, negative in _counted(call, before, after):
        number = call.numbers.get(node) if isinstance(node, fx.Node) else None
        if number is None or not isinstance(number.value, int):
            continue
        if negative or number.value >= 0:  # a size of -1 is for torch to count
            rows = compact(ids).movedim(axis, 0).flatten(1).expand(ids.shape[axis], -1)
            found.append(Place(node, Written(number, rows, negative), axis))
    return found


def _counted(call: Call, before: Tensor, after: list[Tensor]) -> Iterator[tuple[Any, Tensor, int, bool]]:
    """Yields (argument, ids of the positions that it counts, their axis, whether it counts from the end)."""
    raw, args = call.node.args, call.args
    if call.splits and len(args) > 1:
        axis = int(call.kwargs.get("dim", args[2] if len(args) > 2 else 0))
        sizes = raw[1] if isinstance(raw[1], (tuple, list)) else raw[1:2]
        yield from ((size, part, axis, False) for size, part in zip(sizes, after, strict=False))
    elif call.reshapes and len(args) > 1:
        sizes = raw[1] if isinstance(raw[1], (tuple, list)) else raw[1:]
        yield from ((size, after[0], axis, False) for axis, size in enumerate(sizes))
    elif call.narrows and len(args) == 4:
        axis, start, length = args[1:]
        yield raw[2], before.narrow(axis, 0, start), axis, False
        yield raw[3], before.narrow(axis, start, length), axis, False
    elif call.indexes:
        yield from _sliced(raw[1], args[1], before)


def _sliced(raw: Any, index: Any, before: Tensor) -> Iterator[tuple[Any, Tensor, int, bool]]:
    raw, index = (item if isinstance(item, tuple) else (item,) for item in (raw, index))
    axis = 0
    for k, (node, item) in enumerate(zip(raw, index, strict=True)):
        if item is Ellipsis:
            axis = before.ndim - sum(one is not None for one in index[k + 1 :])
        elif isinstance(item, slice):
            for end, at in ((node.start, item.start), (node.stop, item.stop)):
                if isinstance(end, fx.Node):
                    length = before.shape[axis]
                    first, size = (0, min(at, length)) if at >= 0 else (max(length + at, 0), min(-at, length))
                    yield end, before.narrow(axis, first, size), axis, at < 0
        if item is not None and item is not Ellipsis:
            axis += 1
