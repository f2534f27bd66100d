"""The executable specification: every op of the package in pure torch, with the op's own signature.

These run wherever torch runs (MPS, XPU, a machine without a compiler); the compiled kernels are tested against them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def compose_weight(basis: Tensor, steering: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """W[o, i] = scale * sum_l S[o, i, l] B[l], summed in float64 and rounded once.

    Args:
        basis: (L, kh, kw).
        steering: uint8 (O, I/groups), one basis function a filter (L or more, by convention 255: the zero filter);
            or floating (O, I/groups, L), coefficients; differentiable in these.
        scale: one factor for all filters.
        dtype: of the result.

    Returns:
        (O, I/groups, kh, kw).
    """
    wide = torch.float32 if basis.device.type == "mps" else torch.float64  # MPS has no float64
    basis = scale * basis.to(wide)
    if steering.dtype == torch.uint8:
        table = torch.cat([basis, torch.zeros_like(basis[:1])]).to(dtype)
        return table[steering.long().clamp(max=len(basis))]
    return torch.tensordot(steering.to(wide), basis, dims=1).to(dtype)


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


def fixed_conv2d(
    x: Tensor,
    basis: Tensor,
    steering: Tensor,
    packed: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scale: float,
    plan: int,
) -> Tensor:
    """conv2d of x (N, C, H, W) with the composed weight; the result has x's dtype and memory format. Plan 0, the dense
    one, may bring the weight as `packed`; what other plans pack is for their kernels."""
    weight = packed if plan == 0 and packed is not None else compose_weight(basis, steering, scale, x.dtype)
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y.contiguous(memory_format=memory_format_of(x))


def fixed_conv2d_input_grad(
    grad: Tensor,
    basis: Tensor,
    steering: Tensor,
    packed: Tensor | None,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scale: float,
    plan: int,
) -> Tensor:
    """Gradient of `fixed_conv2d` with respect to x, whose height and width were `input_size`."""
    weight = packed if plan == 0 and packed is not None else compose_weight(basis, steering, scale, grad.dtype)
    channels = weight.shape[1] * groups
    x = grad.new_empty(1).expand(grad.shape[0], channels, *input_size)  # only its shape is read
    gx, _, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
    )
    return gx.contiguous(memory_format=memory_format_of(grad))
