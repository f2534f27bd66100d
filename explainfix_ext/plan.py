"""ConvPlan: which kernel runs a bank, and the steering laid out for it.

Python decides only on what is static (geometry, dtype, rank, density); what depends on N, H, W or the CPU's instruction
set is decided inside the kernels, so that dynamic shapes do not recompile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bank import FilterBank

DENSE = 0  # materialise the weight into scratch memory, then the library's dense convolution


@dataclass(frozen=True)
class ConvPlan:
    """What the op's `plan` and `packed` arguments are to be.

    Attributes:
        code: the kernel family, as the op's `plan` takes it.
        name: the same for people.
        packed: the steering as that kernel wants it, or None: the kernel reads the bank itself.
    """

    code: int
    name: str
    packed: Tensor | None = None


def make_plan(bank: FilterBank, dtype: torch.dtype, keep_weight: bool = False) -> ConvPlan:
    """The plan for inputs of `dtype`. `keep_weight`: compose the dense weight once, for inference, where memory may be
    spent to save time; in training it is composed anew each time, so that no filter-sized tensor lives on."""
    if keep_weight:
        return ConvPlan(DENSE, "dense, weight kept", bank.weight(dtype))
    return ConvPlan(DENSE, "dense")
