"""This module finds values for attributes with which numbers in the code become what fewer channels need."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from .numbers import Number, Written


def solve(sizes: Sequence[Written], gone: Tensor, fixed: Collection[str] = ()) -> tuple[dict[str, int], list[Written]]:
    """Finds values for attributes with which every number counts the positions that are left.

    `self.width // 2` is 20 if `self.width` is 40. The attributes in a number that has another value than it must have
    are tried one by one, the largest first: `self.width // self.parts` is to be solved for the width.

    Args:
        sizes: what the numbers must count.
        gone: (ids,) bool.
        fixed: attributes that must stay.

    Returns:
        Attributes that change -> their values, and the sizes that no values were found for.
    """
    changed: dict[str, int] = {}
    wanted = [(one, one.wanted(gone)) for one in sizes if one.number.attributes]
    waiting = [(one, size) for one, size in wanted if one.number.again(gone, {}) != size]
    while waiting:
        waiting.sort(key=lambda pair: len(_free(pair[0].number, changed, fixed)))
        one, size = waiting.pop(0)
        _set(one.number, size, gone, changed, fixed)
        waiting = [(other, size) for other, size in waiting if other.number.again(gone, changed) != size]
    return changed, [one for one, size in wanted if one.number.again(gone, changed) != size]


def _free(number: Number, changed: Collection[str], fixed: Collection[str]) -> list[str]:
    names = [name for name in number.attributes if name not in changed and name not in fixed]
    return sorted(names, key=lambda name: -number.attributes[name])


def _set(number: Number, size: int, gone: Tensor, changed: dict[str, int], fixed: Collection[str]) -> None:
    """Gives one attribute a value with which the number is `size`, if there is one."""
    for name in _free(number, changed, fixed):
        value = number.attributes[name]
        for new in _candidates(value, number.value, size):
            if number.again(gone, changed | {name: new}) == size:
                changed[name] = new
                return


def _candidates(value: int, whole: int, size: int) -> Iterable[int]:
    """Yields values for an attribute: first those of the same ratio, then all that are no larger than it is."""
    yield size
    yield value * size // (whole or 1)
    yield from range(value + 1)
