"""This module says how tensors lie in memory, how much padding a convolution adds, and what a signal is as a picture.

Operators and layers ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Returns channels_last if the strides of x (N, C, H, W) have that order, also in a slice; else contiguous.

    `x.is_contiguous(memory_format=torch.channels_last)` is false for a slice of a channels_last tensor; this is not.
    For volumes (N, C, D, H, W), of which no slices are looked at, it is channels_last_3d; for other numbers of axes
    always contiguous.
    """
    if x.ndim != 4:
        last = x.ndim == 5 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)
        return torch.channels_last_3d if last else torch.contiguous_format
    if x.is_contiguous() != x.is_contiguous(memory_format=torch.channels_last):  # most tensors: no need to look closely
        return torch.contiguous_format if x.is_contiguous() else torch.channels_last
    shape, strides = x.shape, x.stride()
    if strides[1] == 0:
        return torch.contiguous_format
    expected = 0  # the least stride that the next axis may have
    for axis in (1, 3, 2, 0):
        size, stride = shape[axis], strides[axis]
        # The last test: a tensor of shape (N, 1, 1, 1) fits both formats, and torch takes it for contiguous.
        if size == 0 or stride < expected or (axis == 0 and expected == strides[1]):
            return torch.contiguous_format
        expected = stride * size if size > 1 else stride
    return torch.channels_last


def same_padding(
    size: Sequence[Any], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[Any]:
    """Returns the padding that TensorFlow calls "same", in the order of `F.pad`: left, right, top, bottom.

    The output then has ceil(size / stride) pixels. If an odd number is added, the right or the bottom gets one more.
    With stride 1 this is what `nn.Conv2d(padding="same")` adds.

    Args:
        size: (height, width) of the input: ints, SymInts (under torch.export) or Tensors (under torch.jit.trace).
        kernel_size, stride, dilation: (vertical, horizontal).
    """
    pads: list[Any] = []
    for axis in (1, 0):  # F.pad takes the last axis first
        n, k, s, d = size[axis], kernel_size[axis], stride[axis], dilation[axis]
        outputs = -(-n // s)  # rounded up
        lack = (outputs - 1) * s + d * (k - 1) + 1 - n
        total = lack.clamp(min=0) if isinstance(lack, Tensor) else torch.sym_max(lack, 0)
        pads += [total // 2, total - total // 2]
    return pads


def as_pair(numbers: int | Sequence[int], height: int = 1) -> tuple[int, int]:
    """Returns (height, width) of a convolution's numbers: a signal is a picture of one row, and its numbers a width."""
    given = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return (height, given[0]) if len(given) == 1 else (given[0], given[1])


def as_picture(x: Tensor) -> Tensor:
    """Returns signals (N, C, L), or a Conv1d's weight (O, I/groups, K), as pictures of one row; others as they are."""
    return x.unsqueeze(2) if x.ndim == 3 else x
