"""This module holds Number, which says what a number that a model's code computes is for fewer channels.

`x.shape[1] // 2` shrinks by itself with the channels. `self.width` does so if the plan gives it another value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from .values import Value

Again = Callable[[Tensor, Mapping[str, int]], Any]


@dataclass(frozen=True)
class Number:
    """Holds a number, or several, of the model's code.

    Attributes:
        value: what it is in the whole model.
        again: (ids that are gone (count,) bool, attributes that have another value) -> what it is then.
        attributes: those that it is computed from, such as "stages.0.width" or "mix.sizes[1]" -> their values.
        counted: ids of tensors whose sizes it may be computed from.
        from_sizes: True if it is computed from the size of any tensor.
    """

    value: Any
    again: Again
    attributes: Mapping[str, int]
    counted: tuple[Tensor, ...] = ()
    from_sizes: bool = True

    def counts(self, count: int) -> list[Tensor]:
        """Returns those of `counted` whose number it depends on, as ids; `count` is how many ids there are."""
        found = []
        for ids in self.counted:
            gone = torch.zeros(count, dtype=torch.bool)
            gone[ids.unique()[len(ids.unique()) // 2 :]] = True
            if self.again(gone, {}) != self.value:
                found.append(ids)
        return found


@dataclass(frozen=True)
class Written:
    """Says which positions a number in the model's code counts: those of a part of a split, or of an axis.

    Attributes:
        number: the number.
        rows: (n, k) ids at each of the n positions. A position is gone if all k ids are.
        negative: True if the number counts from the end, as in `x[:, -2:]`.
    """

    number: Number
    rows: Tensor
    negative: bool = False

    def wanted(self, gone: Tensor) -> int:
        """Returns what the number must be, given (count,) bool, the ids that are gone."""
        left = int((~gone[self.rows].all(1)).sum())
        return -left if self.negative else left


def is_number(value: Any) -> bool:
    """Says whether a value is a number, or consists of numbers."""
    if isinstance(value, (tuple, list)):
        return bool(value) and all(map(is_number, value))
    return isinstance(value, (int, float))


def attribute(name: str, value: Any) -> Number:
    """Returns the Number for an attribute of a module: an integer, or several."""
    if isinstance(value, int):
        return Number(value, lambda gone, changed: changed.get(name, value), {name: value}, from_sizes=False)
    names = {f"{name}[{i}]": item for i, item in enumerate(value)}
    return Number(value, lambda gone, changed: [changed.get(n, v) for n, v in names.items()], names, from_sizes=False)


def computed(
    node: fx.Node,
    result: Any,
    run: Callable[[Any, Any], Any],
    env: Mapping[fx.Node, Any],
    known: Mapping[fx.Node, Number],
) -> Number | None:
    """Returns the Number for the result of a node; None if it does not come from sizes and attributes alone.

    Args:
        node: the node.
        result: what it gave: a number, or several.
        run: its operation: (args, kwargs) -> result.
        env: the values of the nodes that it reads.
        known: the Numbers among them.
    """
    numbers = {one: known[one] for one in node.all_input_nodes if one in known}
    others = {one: _shapes_of(env[one]) for one in node.all_input_nodes if one not in known}
    counted = [ids for number in numbers.values() for ids in number.counted]
    for one in others:
        map_aggregate(env[one], lambda v: counted.extend(_along(v)) if isinstance(v, Value) else None)

    def again(gone: Tensor, changed: Mapping[str, int]) -> Any:
        def value(one: fx.Node) -> Any:
            if one in numbers:
                return numbers[one].again(gone, changed)
            return map_aggregate(others[one], lambda v: v(gone) if isinstance(v, partial) else v)

        return run(map_arg(node.args, value), map_arg(node.kwargs, value))

    try:
        known_again = again(torch.zeros(max((int(ids.max()) + 1 for ids in counted), default=0), dtype=torch.bool), {})
    except Exception:  # such as a number that is computed from the data
        return None
    if known_again != result:
        return None
    attributes = {name: value for number in numbers.values() for name, value in number.attributes.items()}
    if node.target is operator.getitem and len(numbers) == 1 and not counted and len(attributes) > 1:
        name = [*attributes][node.args[1]]  # type: ignore[index]
        attributes = {name: attributes[name]}
    from_sizes = bool(others) or any(number.from_sizes for number in numbers.values())
    return Number(result, again, attributes, tuple(counted), from_sizes)


def _shapes_of(value: Any) -> Any:
    """Puts in place of every Value a function of what is gone, which makes an empty tensor of the size that is left."""
    return map_aggregate(value, lambda v: partial(_left, v.tensor.shape, v.ids) if isinstance(v, Value) else v)


def _left(shape: tuple[int, ...], ids: Tensor | None, gone: Tensor) -> Tensor:
    sizes = [*shape]
    if ids is not None:
        for axis in (axis for axis, size in enumerate(ids.shape) if size > 1):
            sizes[axis] -= int(gone[ids.movedim(axis, 0).flatten(1)].all(1).sum())
    return torch.empty(sizes, device="meta")


def _along(value: Value) -> list[Tensor]:
    return [value.ids] if value.ids is not None and value.axes() else []
