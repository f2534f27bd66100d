"""Memory layouts of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last if the strides of x (N, C, H, W) run that way, as in a slice of such a tensor; else contiguous."""
    expected = 0
    if x.stride(1) == 0:
        return torch.contiguous_format
    for axis in (1, 3, 2, 0):
        size, stride = x.shape[axis], x.stride(axis)
        # The last test: N111 is ambiguous, and torch takes it for contiguous.
        if size == 0 or stride < expected or (axis == 0 and expected == x.stride(1)):
            return torch.contiguous_format
        expected = stride * size if size > 1 else stride
    return torch.channels_last
