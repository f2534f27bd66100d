"""Phases: a dilated convolution with stride 1 as an ordinary one of smaller images, for kernels without dilation.

Output row d q + a reads the rows d (q + t) + a alone: every d-th row, from row a on. These are phase a, an image whose
convolution has dilation 1. So d x d phases are d x d images, at the cost of two copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .plan import AUTO, HADAMARD, INDEX

# Pixels of a phase times channels, the fewer of input and output, from which on the copies pay. Measured roughly, by
# processor time on one core with AVX-512.
_LEAST = 1024

Pair = tuple[int, int]


def pays(x: Tensor, shape: Sequence[int], stride: Pair, dilation: Pair, plan: int) -> bool:
    """Tells whether a dilated convolution of x, by filters of that `shape`, is to run by its phases.

    A forced plan (without AUTO) runs by phases wherever it can. Tracers get one call of the operator, which is dense.
    """
    if plan & ~AUTO not in (INDEX, HADAMARD) or x.device.type != "cpu" or x.dtype != torch.float32 or stride != (1, 1):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not x.is_contiguous() or x.numel() == 0:
        return False
    pixels = x.shape[2] * x.shape[3] / (dilation[0] * dilation[1])
    return plan < AUTO or pixels * min(shape[:2]) >= _LEAST


def convolve(
    op: Callable[..., Tensor],
    x: Tensor,
    bank: Sequence[Tensor],
    kernel: Sequence[int],
    padding: Pair,
    dilation: Pair,
    before: tuple[Any, ...],
    after: tuple[Any, ...],
) -> Tensor:
    """Calls a convolution operator with x (N, C, H, W), by its phases.

    Args:
        bank: the operator's arguments after x.
        kernel, padding, dilation: (vertical, horizontal), of the dilated convolution.
        before, after: what the operator takes before its padding, and after its dilation.
    """
    images, channels, size = x.shape[0], x.shape[1], x.shape[2:]
    (dy, dx), outside = dilation, [p % d for p, d in zip(padding, dilation, strict=True)]
    rest = [-(n + 2 * o) % d for n, o, d in zip(size, outside, dilation, strict=True)]
    if any(outside) or any(rest):  # all phases get the same size, and a padding that the convolution can add
        (top, left), (more_y, more_x) = outside, rest
        x = F.pad(x, (left, left + more_x, top, top + more_y))
    phases = x.unflatten(3, (-1, dx)).unflatten(2, (-1, dy)).permute(0, 3, 5, 1, 2, 4)
    inside = (padding[0] // dy, padding[1] // dx)
    y = op(phases.reshape(images * dy * dx, channels, *phases.shape[4:]), *bank, *before, inside, (1, 1), *after)
    whole = y.unflatten(0, (images, dy, dx)).permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
    height, width = (n + 2 * p - d * (k - 1) for n, p, d, k in zip(size, padding, dilation, kernel, strict=True))
    return whole[:, :, :height, :width]
