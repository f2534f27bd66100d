"""The CPU's plans: which kernel is fastest by the measured crossovers, and the bank packed for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.ops import binaries
from explainfix_ext.ops.binaries import cpu_has_amx, cpu_isa

from . import crossovers
from .bank_facts import dct_numbers, density_of, once, signed_dct_of
from .pack_cpu_index import outputs_fit, pack_index

MOST_HADAMARD_KERNEL = 16  # kMaxHadamardKernel


def fits(
    name: str, bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Tells whether a kernel takes such a convolution. Only these plans are asked: `pack_index` packs for tile kernels
    alone, and a hadamard bank's weight can be kept where the kernel does not run; a call by any plan may still run
    dense."""
    if name == "hadamard":
        return hadamard_fits(bank, dtype, stride, dilation)
    return name != "index" or index_fits(bank, dtype, stride, dilation, groups)


def hadamard_fits(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tells whether the hadamard kernel takes such a convolution, or its phases; csrc/cpu/driver/hadamard.cpp asks the
    same."""
    known = binaries.LOADED["cpu"] is not None and dtype in (torch.float32, torch.bfloat16)
    return known and hadamard_geometry_fits(bank.kernel_size, stride, _of_phases(dtype, stride, dilation))


def hadamard_geometry_fits(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tells whether there is a hadamard kernel for such a convolution, here or elsewhere."""
    return max(kernel) <= MOST_HADAMARD_KERNEL and max(stride) <= 2 and tuple(dilation) == (1, 1)


def index_fits(
    bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Tells whether `pack_index` can lay the bank out, for tile kernels that there are, maybe of its phases."""
    filters, undilated = 0 not in bank.shape, _of_phases(dtype, stride, dilation)
    return filters and tiles_fit(bank, dtype, stride, undilated) and outputs_fit(bank.shape[0] // groups, stride[0])


def tiles_fit(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tells whether there is a tile kernel for this geometry and dtype; csrc/cpu/driver/tiling.cpp asks the same."""
    known = binaries.LOADED["cpu"] is not None and dtype in (torch.float32, torch.bfloat16)
    return known and geometry_fits(bank.kernel_size, stride, dilation)


def geometry_fits(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tells whether there are tile kernels for such a convolution, here or elsewhere."""
    square = kernel[0] == kernel[1] and kernel[0] in (3, 5, 7)
    return square and tuple(stride) in ((1, 1), (2, 2)) and tuple(dilation) == (1, 1)


def _of_phases(dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int]) -> Sequence[int]:
    """Returns the dilation that a kernel sees: 1 where ops/plans/phases.py can bring it a dilated convolution."""
    return (1, 1) if dtype == torch.float32 and tuple(stride) == (1, 1) else dilation


def fastest(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int) -> str:
    """Names the plan that is fastest by the crossovers."""
    if bank.hadamard is not None:
        return "hadamard"
    if not tiles_fit(bank, dtype, stride, _of_phases(dtype, stride, dilation)):
        return "dense"
    out_channels, channels = bank.shape[:2]
    isa, bf16, kernel = cpu_isa(), dtype == torch.bfloat16, bank.kernel_size[0]
    amx = bf16 and cpu_has_amx()
    fewer = min(out_channels // groups, channels)
    depthwise = channels == 1 and groups > 1
    if bank.index is not None and not depthwise:
        pays = crossovers.index_pays(isa, bf16, kernel, stride[0], fewer, density_of(bank), amx)
        return "index" if pays and index_fits(bank, dtype, stride, dilation, groups) else "dense"
    if max(dilation) > 1:
        return "dense"  # what the copies of phases take is more than these kernels save
    if bank.index is not None:
        return "depthwise" if crossovers.depthwise_pays(stride[0], signed_dct_of(bank) is not None) else "dense"
    functions = dct_numbers(bank)
    dct = functions is not None and len(set(functions)) == len(functions)  # the kernel has one place for each
    if bank.steering.dtype != torch.float32:
        return "dense"
    return "low_rank" if crossovers.low_rank_pays(isa, bf16, kernel, stride[0], fewer, bank.rank, dct) else "dense"


def packed(
    name: str, bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor | None:
    """Returns the op's `packed` argument for the plan `name`."""
    if name == "index":
        return packed_index(bank, groups, stride[0])
    if name != "hadamard" and bank.shape[1] == 1 and groups > 1:
        # K^2 numbers a channel are little to keep. Where a depthwise kernel hands the call to torch, composing them
        # anew cost up to as much as the convolution: what is allocated each time moves torch's own memory about.
        return bank.weight(dtype)
    return None


def packed_index(bank: FilterBank, groups: int, stride: int) -> Tensor:
    """Returns `pack_index` of the bank, made once."""
    index = bank.index
    assert index is not None
    kernel, dct = bank.kernel_size[0], signed_dct_of(bank)
    return once(
        bank, ("packed for the CPU", groups, stride), lambda: pack_index(index, kernel, bank.rank, groups, stride, dct)
    )
