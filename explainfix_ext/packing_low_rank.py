"""The layout of `packed` for the low-rank CUDA kernel: the coefficients in the order in which its blocks read them.

    forward     [groups][steps][L][outputs][channels of a step]: 32 bytes of input channels a step; outputs padded with
                zeros to a multiple of 64, channels to whole steps
    gradient    the same with inputs and outputs exchanged

csrc/kernels/low_rank_tile.h counts the same elements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STEP_BYTES = 32
OUTPUTS = 64


def pack_low_rank(coeff: Tensor, dtype: torch.dtype, groups: int, tf32: bool = False) -> Tensor:
    """The `packed` argument of the low-rank plan on CUDA: 1-D, of `dtype`, on coeff's device.

    Args:
        coeff: (O, I/groups, L), floating.
        dtype: of the convolution's input: float16, bfloat16 or float32.
        groups: of the convolution.
        tf32: round float32 to the 19 bits that the tensor cores read; they would cut it off.
    """
    grouped = coeff.unflatten(0, (groups, -1))  # (groups, O/groups, I/groups, L)
    forward, gradient = (_steps(t, dtype) for t in (grouped, grouped.transpose(1, 2)))
    packed = torch.cat([forward, gradient])
    return round_to_tf32(packed) if tf32 and dtype == torch.float32 else packed


def round_to_tf32(x: Tensor) -> Tensor:
    """float32 with 10 bits of mantissa, ties away from zero, as cvt.rna.tf32 does."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _steps(coeff: Tensor, dtype: torch.dtype) -> Tensor:
    """(groups, outputs, channels, L) -> flat [groups][steps][L][outputs][channels of a step]."""
    outputs, channels = coeff.shape[1:3]
    step = STEP_BYTES // dtype.itemsize
    padded = F.pad(coeff.to(dtype), (0, 0, 0, -channels % step, 0, -outputs % OUTPUTS))
    return padded.unflatten(2, (-1, step)).permute(0, 2, 4, 1, 3).flatten()
