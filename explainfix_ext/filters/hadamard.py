"""HadamardFilters: filters by which all channels mix in O(log C) operations, held as one column and one row a channel.

    W[o, i] = H[p, q] * sum_t columns[t, o] (x) rows[t, j, g, i]          ((x): the outer product of a column and a row)

H is the Walsh-Hadamard matrix of order m, H[p, q] = (-1)^(number of ones in p & q). outputs[o] = j m + p says which row
p an output of group g takes and which rows[:, j] its inputs have; inputs[g, i] = q says which column of H an input
takes. Several inputs may take one column, and outputs beyond m begin another j: so any number of channels does. A
convolution is then a horizontal filter for each input, a fast Walsh-Hadamard transform over the channels, and a
vertical filter for each output.

Bits of p and q that are not in the mask `stages` must agree, else the filter is zero: the transform leaves those stages
out, and an output reads only some of the inputs.

Source: the transform in place of learned 1x1 layers: Jeon and Kim 2019 (arXiv 1906.12172), Pan et al. 2021 (arXiv
2104.07085).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_PLACES = 1 << 15  # of outputs and of inputs, so that their numbers fit int16


@dataclass(frozen=True, eq=False)
class HadamardFilters:
    """These are the numbers that the module's formula takes, checked.

    Attributes:
        columns: (T, O, kh) float32, the vertical filters; T terms are added.
        rows: (T, J, groups, I/groups, kw) float32, the horizontal filters.
        outputs: (O,) int16 in [0, J order).
        inputs: (groups, I/groups) int16 in [0, order).
        order: of H, a power of two.
        stages: the bits of places that are transformed.

    Raises:
        ValueError: a tensor is of another dtype or shape, or a place is out of range.
    """

    columns: Tensor
    rows: Tensor
    outputs: Tensor
    inputs: Tensor
    order: int
    stages: int

    def __post_init__(self) -> None:
        columns, rows, order = self.columns, self.rows, self.order
        if columns.ndim != 3 or columns.dtype != torch.float32 or 0 in columns.shape:
            raise ValueError(f"columns must be float32 [T, O, kh], got {_describe(columns)}")
        terms, outputs = columns.shape[:2]
        if rows.ndim != 5 or rows.dtype != torch.float32 or 0 in rows.shape or rows.shape[0] != terms:
            raise ValueError(f"rows must be float32 [T = {terms}, J, groups, I/groups, kw], got {_describe(rows)}")
        if terms > columns.shape[2] * rows.shape[4]:
            raise ValueError(
                f"columns must be of at most kh kw = {columns.shape[2] * rows.shape[4]} terms, got {terms}"
            )
        if outputs % rows.shape[2]:
            raise ValueError(f"rows must be of groups that divide O = {outputs}, got {_describe(rows)}")
        if type(order) is not int or not 1 <= order <= MOST_PLACES or order & (order - 1):
            raise ValueError(f"order must be a power of two up to {MOST_PLACES}, got {order}")
        if type(self.stages) is not int or self.stages & (order - 1) != self.stages:
            raise ValueError(f"stages must be a mask of bits below order = {order}, got {self.stages}")
        for name, places, shape, most in (
            ("outputs", self.outputs, (outputs,), rows.shape[1] * order),
            ("inputs", self.inputs, tuple(rows.shape[2:4]), order),
        ):
            if tuple(places.shape) != shape or places.dtype != torch.int16:
                raise ValueError(f"{name} must be int16 {list(shape)}, got {_describe(places)}")
            if most > MOST_PLACES:
                raise ValueError(f"{name} must have at most {MOST_PLACES} places, got {most}")
            # On a GPU the check would wait for it, and a FakeTensor has no values.
            known = type(places) is Tensor and places.device.type == "cpu"
            if known and not 0 <= int(places.min()) <= int(places.max()) < most:
                raise ValueError(f"{name} must be in [0, {most}), got {int(places.min())} to {int(places.max())}")

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns columns, rows, outputs and inputs, in the operator's order."""
        return self.columns, self.rows, self.outputs, self.inputs

    @property
    def groups(self) -> int:
        """Returns the groups of the convolution."""
        return self.rows.shape[2]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Returns (O, I/groups, kh, kw)."""
        return self.columns.shape[1], self.rows.shape[3], self.columns.shape[2], self.rows.shape[4]

    @property
    def nonzero(self) -> Tensor:
        """Tells which filters are not zero, (O, I/groups) bool."""
        rows = self.rows.any(-1)[(slice(None), *_chunk_and_group(self.outputs, self.inputs, self.order))]
        some = (self.columns.any(-1)[..., None] & rows).any(0)
        return some & (hadamard_signs(self.outputs, self.inputs, self.order, self.stages) != 0)

    @property
    def operations(self) -> int:
        """Counts the multiply-adds of both 1-D filters and the additions of the transform, for a pixel."""
        (outputs, per_group, kh, kw), (terms, chunks) = self.shape, self.rows.shape[:2]
        transform = self.order * self.stages.bit_count()
        return terms * (self.groups * chunks * (per_group * kw + transform) + outputs * kh)

    def weight(self, scale: float, dtype: torch.dtype) -> Tensor:
        """Composes scale * W (O, I/groups, kh, kw)."""
        return compose_hadamard(*self.tensors, self.order, self.stages, scale, dtype)

    def to(self, device: torch.device) -> HadamardFilters:
        """Returns the same on another device."""
        columns, rows, outputs, inputs = (t.to(device) for t in self.tensors)
        return HadamardFilters(columns, rows, outputs, inputs, self.order, self.stages)

    def cut(self, outputs: Tensor, groups: Tensor, columns: Tensor) -> HadamardFilters:
        """Returns the filters of some outputs, groups and input channels of each group, by number."""
        outputs, groups, columns = (number.to(self.rows.device) for number in (outputs, groups, columns))
        rows = self.rows.index_select(2, groups).index_select(3, columns)
        inputs = self.inputs.index_select(0, groups).index_select(1, columns)
        kept = (self.columns.index_select(1, outputs), rows, self.outputs[outputs], inputs)
        return HadamardFilters(*kept, self.order, self.stages)

    def without(self, zero: Tensor) -> HadamardFilters | None:
        """Returns these filters with zeros where `zero` (O, I/groups) is True, if those are all that an output, or all
        that an input of a group, has left; None: no column and row makes single filters zero."""
        left = self.nonzero & ~zero
        columns = self.columns * left.any(1)[:, None]
        rows = self.rows * left.unflatten(0, (self.groups, -1)).any(1)[..., None]
        kept = HadamardFilters(columns, rows, self.outputs, self.inputs, self.order, self.stages)
        return kept if torch.equal(kept.nonzero, left) else None


def compose_hadamard(
    columns: Tensor,
    rows: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    order: int,
    stages: int,
    scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """Composes scale * W (O, I/groups, kh, kw) from the parts of HadamardFilters, in float64, rounded once."""
    wide = torch.float32 if columns.device.type == "mps" else torch.float64  # MPS has no float64
    taken = rows.to(wide)[(slice(None), *_chunk_and_group(outputs, inputs, order))]  # (T, O, I/groups, kw)
    filters = torch.einsum("toh,toiw->oihw", columns.to(wide), taken)
    signs = hadamard_signs(outputs, inputs, order, stages).to(wide)
    return (scale * signs[..., None, None] * filters).to(dtype)


def _chunk_and_group(outputs: Tensor, inputs: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Returns for each output which of its group's rows it takes: their chunk j and the group, (O,) int64 each."""
    group = torch.arange(len(outputs), device=outputs.device) // (len(outputs) // len(inputs))
    return outputs.long() // order, group


def hadamard_signs(outputs: Tensor, inputs: Tensor, order: int, stages: int) -> Tensor:
    """Returns H of each filter, (O, I/groups) float32: 1, -1, or 0 where places differ in a bit that is no stage."""
    p, q = (outputs.long() % order).reshape(len(inputs), -1), inputs.long()
    bits = [1 << bit for bit in range(order.bit_length()) if stages >> bit & 1] or [0]
    ones_of_p, ones_of_q = (torch.stack([places & bit != 0 for bit in bits], -1).float() for places in (p, q))
    signs = 1 - 2 * (ones_of_p @ ones_of_q.mT % 2)  # whole numbers up to 15: exact in any precision
    others = order - 1 & ~stages
    if others:
        signs = signs * ((p & others)[..., None] == (q & others)[:, None])
    return signs.flatten(0, 1)


def _describe(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
