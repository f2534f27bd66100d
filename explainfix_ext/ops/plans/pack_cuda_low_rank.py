"""Lays coefficients out in the order in which the low-rank CUDA kernel reads them: `packed`, of the input's dtype.

    factors     [L][kh + kw] float32, padded to 16 bytes: the column and the row whose product each function is; nothing
                if one is no product
    forward     [groups][steps][L][outputs][channels of a step]: 32 bytes of input channels a step; outputs padded with
                zeros to a multiple of 64, channels to whole steps
    gradient    the same with inputs and outputs exchanged

csrc/shared/packed_layout.h has the same numbers; csrc/cuda/device/low_rank/tile.h counts the same elements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# csrc/shared/packed_layout.h has the same numbers; tests/ops/plans/test_packed_layout.py compares them.
STEP_BYTES = 32  # of a pixel's input channels
OUTPUTS = 64  # outputs are padded to a multiple
FACTOR_MULTIPLE = 4  # floats: factors are padded to 16 bytes


def pack_low_rank(coeff: Tensor, factors: Tensor | None, dtype: torch.dtype, groups: int) -> Tensor:
    """Makes the `packed` argument of the low-rank plan on CUDA: 1-D, of `dtype`, on coeff's device.

    Args:
        coeff: (O, I/groups, L), floating.
        factors: (L, kh + kw) float32, of `product_factors`.
        dtype: of the convolution's input: float16, bfloat16 or float32.
        groups: of the convolution.
    """
    grouped = coeff.unflatten(0, (groups, -1))  # (groups, O/groups, I/groups, L)
    forward, gradient = (_steps(t, dtype) for t in (grouped, grouped.transpose(1, 2)))
    if factors is None:
        return torch.cat([forward, gradient])
    head = F.pad(factors.flatten(), (0, -factors.numel() % FACTOR_MULTIPLE)).view(dtype)
    return torch.cat([head, forward, gradient])


def _steps(coeff: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns (groups, outputs, channels, L) into flat [groups][steps][L][outputs][channels of a step]."""
    outputs, channels = coeff.shape[1:3]
    step = STEP_BYTES // dtype.itemsize
    padded = F.pad(coeff.to(dtype), (0, 0, 0, -channels % step, 0, -outputs % OUTPUTS))
    return padded.unflatten(2, (-1, step)).permute(0, 2, 4, 1, 3).flatten()
