"""This module answers questions about an operation by trying it out on other tensors.

Does it treat every channel by itself (`per_channel_axis`)? Does it keep even channels even, at any size of the image
(`stays_even`)? Would it still move the same elements if some channels were gone (`moves_alike`)? The rules in rules.py
and moves.py ask them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .graph import components, first_of
from .inputs import to_double


def per_channel_axis(call: Callable[[list[Tensor]], Any], operands: Sequence[tuple[Tensor, int, Tensor]]) -> int | None:
    """Returns the output's axis of channels if `call` treats every channel by itself, else None.

    It runs the operation on random numbers, with all channels and with each half of them: both must agree on that half.
    The numbers are small and large, and float64 where the operation takes it: an operation that mixes channels by
    little, such as a normalisation with a small weight, shows by more than rounding.

    Args:
        call: list of tensors -> the operation's result for them.
        operands: (tensor, axis of its channels, ids along that axis), with the same number of channels in each.
    """
    axes = [axis for _, axis, _ in operands]
    length = operands[0][0].shape[axes[0]]
    keep = _some_positions(length, [ids for _, _, ids in operands])
    if keep is None:
        return None
    generator = torch.Generator().manual_seed(length)
    inputs = [_random_like(tensor, generator) for tensor, _, _ in operands]
    found: int | None = axes[0]
    others = torch.ones(length, dtype=torch.bool).index_fill(0, keep, False).nonzero().flatten()
    for scale, half in ((1.0, keep), (100.0, others)):
        whole, part = _whole_and_part(call, [x * scale if x.is_floating_point() else x for x in inputs], axes, half)
        if not isinstance(whole, Tensor) or not isinstance(part, Tensor) or whole.ndim != part.ndim or found is None:
            return None
        found = _axis_of_half(whole, part, found, length, half)
    return found


def _whole_and_part(
    call: Callable[[list[Tensor]], Any], inputs: list[Tensor], axes: list[int], keep: Tensor
) -> tuple[Any, Any]:
    """Runs an operation with all channels and with those in `keep`: in float64, or as it is if it takes no float64."""
    for cast_to in (to_double, tuple):
        whole: tuple[Tensor, ...] = cast_to(tuple(inputs))
        part = [x.index_select(axis, keep.to(x.device)) for x, axis in zip(whole, axes, strict=True)]
        try:
            return call([x.clone() for x in whole]), call(part)
        except Exception:  # an operation may raise anything for sizes and dtypes that it does not expect
            continue
    return None, None


def _axis_of_half(whole: Tensor, part: Tensor, first: int, length: int, keep: Tensor) -> int | None:
    """Returns the axis along which `part` is the half of `whole` that `keep` says; `first` is tried first."""
    for axis in sorted(range(whole.ndim), key=lambda axis: axis != first):
        if whole.shape[axis] == length and part.shape[axis] == len(keep):
            expected = whole.index_select(axis, keep.to(whole.device))
            if expected.shape == part.shape and _close(expected, part):
                return axis
    return None


def stays_even(call: Callable[[list[Tensor]], Any], operands: Sequence[tuple[Tensor, int]], out_axis: int) -> bool:
    """Says whether channels that are the same at every pixel stay so in `call`, and are the same at any size.

    It runs the operation on even images of the size of the operands and of other sizes: each channel must come out as
    one number, the same each time. A padded mean differs at the borders, and a sum over pixels from size to size.

    Args:
        call: list of tensors -> the operation's result for them.
        operands: (tensor, axis of its channels).
        out_axis: the axis of the result's channels.
    """
    largest: dict[int, int] = {}
    for tensor, axis in operands:
        for k in _pixel_axes(tensor, axis):
            largest[k] = max(largest.get(k, 1), tensor.shape[k])
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(tensor.shape[axis], generator=generator).to(tensor) for tensor, axis in operands]
    seen: Tensor | None = None
    for factor, more in ((1, 0), (1, 1), (2, 3)):
        even = []
        for (tensor, axis), level in zip(operands, levels, strict=True):
            sizes = [1] * tensor.ndim
            sizes[axis] = len(level)
            spread = level.reshape(sizes)
            for k in _pixel_axes(tensor, axis):  # an axis of size 1 that is spread over another stays
                if tensor.shape[k] == largest[k]:
                    sizes[k] = factor * largest[k] + more if largest[k] <= 32 else largest[k] + more
            even.append(spread.expand(sizes).contiguous())
        try:
            result = call(even)
            rows = result.movedim(out_axis, 0).reshape(result.shape[out_axis], -1)
        except Exception:  # such as a size that is written in the code
            return False
        seen = rows[:, :1] if seen is None else seen
        if not rows.numel() or not torch.allclose(rows, seen.expand_as(rows), rtol=1e-4, atol=1e-6, equal_nan=True):
            return False
    return True


def _pixel_axes(tensor: Tensor, axis: int) -> list[int]:
    """Returns the axes other than those of the batch and of the channels, counted from the last, which is -1."""
    return [k - tensor.ndim for k in range(tensor.ndim) if k != axis and (k or not axis)]


def moves_alike(
    call: Callable[[list[Tensor], Tensor], Any],
    values: Sequence[Tensor],
    moved: Sequence[Tensor],
    ties: list[Tensor],
    shares: Sequence[float] = (0.5,),
) -> bool:
    """Says whether `call` still moves every id to the same place when half of the ids are gone.

    Args:
        call: (list of tensors, ids that are gone) -> moved tensor or tensors.
        values: ids of every element before the operation.
        moved: ids of every element after it.
        ties: pairs of ids, (2, n), that are gone together.
        shares: of the ids that are kept, one for each trial.
    """
    known = torch.cat([t.reshape(-1) for t in values]).long().unique()
    local = [torch.searchsorted(known, pair) for pair in ties if bool(torch.isin(pair, known).all())]
    groups = components(len(known), local)
    draws = [_some_of(groups, share, seed) for seed, share in enumerate(shares)]
    return all(kept is not None and _moves_same(call, values, moved, known[~kept]) for kept in draws)


def _moves_same(
    call: Callable[[list[Tensor], Tensor], Any], values: Sequence[Tensor], moved: Sequence[Tensor], gone: Tensor
) -> bool:
    before, after = [_delete(t, gone) for t in values], [_delete(t, gone) for t in moved]
    if any(t is None for t in (*before, *after)):
        return False
    try:
        got = call([t.contiguous() for t in before if t is not None], gone)
    except Exception:  # such as a size that no longer fits
        return False
    got = [got] if isinstance(got, Tensor) else list(got)
    return len(got) == len(after) and all(torch.equal(a, b) for a, b in zip(got, after, strict=True) if b is not None)


def _some_positions(length: int, ids: Sequence[Tensor]) -> Tensor | None:
    """Draws half of the positions, with those that share an id drawn together; None if all share one."""
    edges = []
    for one in ids:
        _, inverse = one.unique(return_inverse=True)
        edges.append(torch.stack([torch.arange(length), first_of(inverse)]))
    kept = _some_of(components(length, edges))
    return None if kept is None else kept.nonzero().flatten()


def _some_of(groups: Tensor, share: float = 0.5, seed: int = 0) -> Tensor | None:
    """Draws half of the groups, or another share, as (n,) bool; None if there is only one group."""
    names, group = groups.unique(return_inverse=True)
    if len(names) < 2:
        return None
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(len(names) + seed))
    chosen = torch.zeros(len(names), dtype=torch.bool)
    chosen[order[: max(int((len(names) + 1) * share), 1)]] = True
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
    # What is left is rounding: sums over pixels may run in another order.
    small = {torch.float64: 1e-9, torch.float32: 1e-5}.get(a.dtype, 2e-2)
    size = b.double().nan_to_num(0, 0, 0).abs().amax().item() if b.numel() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=small, atol=small * size, equal_nan=True)
