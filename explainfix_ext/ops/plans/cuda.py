"""CUDA's plans: which kernel runs a bank, and the bank packed for it.

The card's tensor cores run dense convolutions faster than kernels that add what index filters name, or multiply by few
coefficients (bench/RESULTS.md has what was measured): such banks run dense here, whatever plan was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.hadamard import HadamardFilters
from explainfix_ext.ops import binaries

from .bank_facts import once
from .pack_cuda_depthwise import pack_depthwise
from .pack_cuda_hadamard import pack_hadamard


def fits(
    name: str, bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Tells whether a kernel takes such a convolution."""
    if name == "hadamard":
        return hadamard_fits(bank, dtype, stride, dilation)
    return name == "depthwise" and depthwise_fits(bank, dtype, stride, dilation, groups)


def hadamard_fits(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tells whether the hadamard kernel takes such a convolution; csrc/cuda/device/hadamard/walk.h asks the same, and,
    in an input gradient, for one set of rows."""
    filters = bank.hadamard
    if filters is None or binaries.LOADED["cuda"] is None or "hadamard_conv2d" in binaries.OFF:
        return False
    outputs, channels, *kernel = bank.shape
    return (
        dtype in (torch.float32, torch.bfloat16, torch.float16)
        and tuple(kernel) == (3, 3)
        and len(filters.columns) == 1
        and 8 <= filters.order <= 1024
        and channels % 8 == outputs // filters.groups % 8 == 0
        and max(stride) <= 2
        and tuple(dilation) == (1, 1)
        and once(bank, "places in turn", lambda: places_in_turn(filters))
    )


def places_in_turn(filters: HadamardFilters) -> bool:
    """Tells whether outputs and inputs take the places 0, 1, ... in turn, as where nothing was pruned: the kernel reads
    neighbouring channels at once."""
    outputs, inputs = filters.outputs, filters.inputs
    if isinstance(outputs, FakeTensor) or outputs.is_meta:
        return False  # nobody knows
    of_group = torch.arange(len(outputs), device=outputs.device) % (len(outputs) // filters.groups)
    in_turn = torch.arange(inputs.shape[1], device=outputs.device) % filters.order
    return bool((outputs == of_group).all() & (inputs == in_turn).all())


def depthwise_fits(
    bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Tells whether there is a depthwise kernel for this geometry and dtype; csrc/cuda/device/depthwise asks the same,
    for less padding than the kernel's size, and with channels_last for an even number of channels."""
    out_channels, channels, *kernel = bank.shape
    return (
        binaries.LOADED["cuda"] is not None
        and "fixed_conv2d" not in binaries.OFF
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
    if bank.hadamard is not None:
        return "hadamard"
    return "depthwise" if depthwise_fits(bank, dtype, stride, dilation, groups) else "dense"


def packed(
    name: str, bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor | None:
    """Returns the op's `packed` argument for the plan `name`."""
    if name == "hadamard":
        filters, scale = bank.hadamard, bank.scale
        assert filters is not None
        return once(bank, "hadamard packed for CUDA", lambda: pack_hadamard(filters, scale))
    if name == "depthwise":
        return once(bank, "depthwise packed for CUDA", lambda: pack_depthwise(bank.weight(torch.float64)))
    return None
