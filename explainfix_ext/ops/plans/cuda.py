"""CUDA's plans: which kernel runs a bank, and the bank packed for it.

The card's tensor cores run dense convolutions faster than kernels that add what index filters name, or multiply by few
coefficients (bench/RESULTS.md has what was measured): such banks run dense here, whatever plan was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.ops import binaries

from .bank_facts import once
from .pack_cuda_depthwise import pack_depthwise


def fits(
    name: str, bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Tells whether a kernel takes such a convolution."""
    return name == "depthwise" and depthwise_fits(bank, dtype, stride, dilation, groups)


def depthwise_fits(
    bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Tells whether there is a depthwise kernel for this geometry and dtype; csrc/cuda/device/depthwise asks the same,
    and for less padding than the kernel's size."""
    out_channels, channels, *kernel = bank.shape
    return (
        binaries.LOADED["cuda"] is not None
        and bank.hadamard is None
        and dtype in (torch.float32, torch.bfloat16, torch.float16)
        and channels == 1
        and out_channels == groups > 1
        and kernel[0] == kernel[1]
        and kernel[0] in (3, 5, 7)
        and tuple(stride) in ((1, 1), (2, 2))
        and tuple(dilation) == (1, 1)
    )


def fastest(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int) -> str:
    """Names the plan that is fastest, as measured."""
    return "depthwise" if depthwise_fits(bank, dtype, stride, dilation, groups) else "dense"


def packed(
    name: str, bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor | None:
    """Returns the op's `packed` argument for the plan `name`."""
    if name == "depthwise":
        return once(bank, "depthwise packed for CUDA", lambda: pack_depthwise(bank.weight(torch.float64)))
    return None
