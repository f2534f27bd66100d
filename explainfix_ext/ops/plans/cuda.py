"""CUDA's plans: which kernel is fastest by the crossovers (estimates so far), and the bank packed for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.ops import binaries

from . import crossovers
from .bank_facts import dct_numbers, density_of, once
from .pack_cuda_depthwise import pack_depthwise
from .pack_cuda_index import pack_sparse_index

LATE = ("low_rank",)  # its coefficients are as large as the weight: packed when they are used
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tf32_allowed() -> bool:
    """Tells whether float32 convolutions may read 19 bits of a number, as torch's own may: `torch.backends.cudnn`."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # set by the newer names, and differently for recurrent networks
        return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def fits(
    name: str, bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Tells whether a kernel takes such a convolution."""
    if name == "index":
        return index_fits(bank, dtype, stride, dilation)
    if name == "hadamard":
        return False  # there is no kernel yet: the weight is composed
    return name != "low_rank" or low_rank_fits(bank, dtype, stride, dilation)


def index_fits(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tells whether there is an index kernel for this geometry and dtype, as csrc/cuda/launch/sparse_index.cu does."""
    return (
        _within_limits(bank, dtype, stride, dilation)
        and bank.kernel_size[0] in (3, 5, 7)
        and dct_numbers(bank) is not None
    )


def fastest(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int) -> str:
    """Names the plan that is fastest by the crossovers."""
    if bank.hadamard is not None or not _within_limits(bank, dtype, stride, dilation):
        return "dense"
    out_channels, channels = bank.shape[:2]
    kernel, fewer = bank.kernel_size[0], min(out_channels // groups, channels)
    if channels == 1 and groups > 1:
        return "depthwise" if out_channels == groups and kernel in (3, 5, 7) else "dense"
    if bank.index is not None:
        pays = index_fits(bank, dtype, stride, dilation) and crossovers.cuda_index_pays(fewer, density_of(bank))
        return "index" if pays else "dense"
    return "low_rank" if crossovers.cuda_low_rank_pays(kernel, fewer, bank.rank) else "dense"


def low_rank_fits(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tells whether there is a low-rank kernel for this geometry and dtype; csrc/cuda/launch/low_rank.cu asks more."""
    return _within_limits(bank, dtype, stride, dilation) and bank.rank <= 9 and bank.kernel_size[0] <= 7


def _within_limits(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tells whether a convolution is within what every kernel here asks for."""
    kernel = bank.kernel_size
    return (
        binaries.LOADED["cuda"] is not None
        and dtype in _DTYPES
        and kernel[0] == kernel[1]
        and tuple(stride) in ((1, 1), (2, 2))
        and tuple(dilation) == (1, 1)
    )


def packed(
    name: str, bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor | None:
    """Returns the op's `packed` argument for the plan `name`; the low-rank plan's is made late, by `ConvPlan.pack`."""
    if name == "depthwise":
        return once(bank, "depthwise packed for CUDA", lambda: pack_depthwise(bank.weight(torch.float64)))
    if name != "index":
        return None
    index, functions, kernel = bank.index, dct_numbers(bank), bank.kernel_size[0]
    assert index is not None
    assert functions is not None
    return once(bank, ("packed for CUDA", groups), lambda: pack_sparse_index(index, functions, kernel, groups))
