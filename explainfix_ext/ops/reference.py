"""The executable specification: every op of the package in pure torch, with the op's own signature.

These run wherever torch runs (MPS, XPU, a machine without a compiler); the compiled kernels are tested against them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.filters.basis import compose_weight


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
