"""This module holds Value, a tensor with the ids of its channels, and answers two questions by trying them out.

Does an operation treat every channel by itself (`per_channel_axis`)? Would it still move the same elements if some
channels were gone (`moves_alike`)? The rules in rules.py and moves.py ask them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from .graph import components, first_of


@dataclass(frozen=True)
class Value:
    """Holds a tensor that the network computes, and the id of the channel of each of its elements.

    Attributes:
        tensor: the numbers.
        ids: int64, with as many axes as `tensor`, of size 1 along the axes where the id does not change. None if the
            tensor has no channels, such as a mask or an index.
        held: why none of its channels can go; empty if they may. A held value has a single id.
    """

    tensor: Tensor
    ids: Tensor | None
    held: str = ""

    def axes(self) -> list[int]:
        """Returns the axes along which ids change."""
        return [] if self.ids is None else [axis for axis, size in enumerate(self.ids.shape) if size > 1]

    def along(self, axis: int) -> Tensor:
        """Returns the ids along `axis`, which must be the only one where they change."""
        assert self.ids is not None
        return self.ids.reshape(-1).expand(self.tensor.shape[axis])

    def spread(self) -> Tensor:
        """Returns the id of every element, as float64, so that any operation that moves elements accepts them."""
        assert self.ids is not None
        return self.ids.double().expand(self.tensor.shape).contiguous()


def compact(ids: Tensor) -> Tensor:
    """Cuts every axis along which the ids do not change to size 1."""
    ids = ids.long()
    for axis in range(ids.ndim):
        first = ids.narrow(axis, 0, 1) if ids.shape[axis] else ids
        if bool((ids == first).all()):
            ids = first
    return ids


def per_channel_axis(call: Callable[[list[Tensor]], Any], operands: Sequence[tuple[Tensor, int, Tensor]]) -> int | None:
    """Returns the output's axis of channels if `call` treats every channel by itself, else None.

    It runs the operation on random numbers, once with all channels and once with half of them: both must agree on that
    half.

    Args:
        call: list of tensors -> the operation's result for them.
        operands: (tensor, axis of its channels, ids along that axis), with the same number of channels in each.
    """
    length = operands[0][0].shape[operands[0][1]]
    keep = _some_positions(length, [ids for _, _, ids in operands])
    if keep is None:
        return None
    generator = torch.Generator().manual_seed(length)
    inputs = [_random_like(tensor, generator) for tensor, _, _ in operands]
    some = [t.index_select(axis, keep.to(t.device)) for t, (_, axis, _) in zip(inputs, operands, strict=True)]
    try:
        whole, part = call([t.clone() for t in inputs]), call(some)
    except Exception:  # an operation may raise anything for sizes that it does not expect
        return None
    if not isinstance(whole, Tensor) or not isinstance(part, Tensor) or whole.ndim != part.ndim:
        return None
    first = operands[0][1]
    for axis in sorted(range(whole.ndim), key=lambda axis: axis != first):
        if whole.shape[axis] == length and part.shape[axis] == len(keep):
            expected = whole.index_select(axis, keep.to(whole.device))
            if expected.shape == part.shape and _close(expected, part):
                return axis
    return None


def moves_alike(
    calls: Iterable[Callable[[list[Tensor]], Any]],
    values: Sequence[Tensor],
    moved: Sequence[Tensor],
    ties: list[Tensor],
) -> bool:
    """Says whether one of `calls` still moves every id to the same place when half of the ids are gone.

    Args:
        calls: list of tensors -> moved tensor or tensors.
        values: ids of every element before the operation.
        moved: ids of every element after it.
        ties: pairs of ids, (2, n), that are gone together.
    """
    known = torch.cat([t.reshape(-1) for t in values]).long().unique()
    local = [torch.searchsorted(known, pair) for pair in ties if bool(torch.isin(pair, known).all())]
    groups = components(len(known), local)
    kept = _some_of(groups)
    if kept is None:
        return False
    gone = known[~kept]
    before, after = [_delete(t, gone) for t in values], [_delete(t, gone) for t in moved]
    if any(t is None for t in (*before, *after)):
        return False
    for call in calls:
        try:
            got = call([t.contiguous() for t in before if t is not None])
        except Exception:
            continue
        got = [got] if isinstance(got, Tensor) else list(got)
        if len(got) == len(after) and all(torch.equal(a, b) for a, b in zip(got, after, strict=True) if b is not None):
            return True
    return False


def _some_positions(length: int, ids: Sequence[Tensor]) -> Tensor | None:
    """Draws half of the positions, with those that share an id drawn together; None if all share one."""
    edges = []
    for one in ids:
        _, inverse = one.unique(return_inverse=True)
        edges.append(torch.stack([torch.arange(length), first_of(inverse)]))
    kept = _some_of(components(length, edges))
    return None if kept is None else kept.nonzero().flatten()


def _some_of(groups: Tensor) -> Tensor | None:
    """Draws half of the groups, as (n,) bool; None if there is only one group."""
    names, group = groups.unique(return_inverse=True)
    if len(names) < 2:
        return None
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(len(names)))
    chosen = torch.zeros(len(names), dtype=torch.bool)
    chosen[order[: (len(names) + 1) // 2]] = True
    return chosen[group]


def _delete(ids: Tensor, gone: Tensor) -> Tensor | None:
    """Removes every position, along any axis, whose ids are all gone; None if ids that are gone remain elsewhere."""
    for axis in range(ids.ndim):
        flat = torch.isin(ids.movedim(axis, 0).reshape(ids.shape[axis], -1), gone).all(1)
        ids = ids.index_select(axis, (~flat).nonzero().flatten())
    return None if bool(torch.isin(ids, gone).any()) else ids


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, generator=generator).to(tensor)


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-5, equal_nan=True)


def each_tensor(result: Any, change: Callable[[Tensor], Any]) -> Any:
    """Applies `change` to every tensor in `result`; the named fields of torch.max and the like keep their names."""
    changed = map_aggregate(result, lambda v: cast(Any, change(v)) if isinstance(v, Tensor) else v)
    names = getattr(type(result), "__match_args__", ())
    return _Fields(changed, names) if isinstance(result, tuple) and names else changed


class _Fields(tuple):
    """Lets the items of a tuple also be read as attributes."""

    names: tuple[str, ...]

    def __new__(cls, items: Any, names: tuple[str, ...]) -> _Fields:
        made = super().__new__(cls, items)
        made.names = names
        return made

    def __getattr__(self, name: str) -> Any:
        if name not in self.names:
            raise AttributeError(name)
        return self[self.names.index(name)]


def is_plain(result: Any) -> bool:
    """Says whether `result` consists of sizes, numbers and the like, which hold no activation."""
    if isinstance(result, (tuple, list)):
        return all(is_plain(item) for item in result)
    return result is None or isinstance(result, (bool, int, float, str, torch.dtype, torch.device))


def has_tensor(result: Any) -> bool:
    found: list[bool] = []
    map_aggregate(result, lambda v: found.append(True) if isinstance(v, Tensor) else None)
    return bool(found)
