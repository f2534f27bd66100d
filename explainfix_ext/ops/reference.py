"""This module specifies the convolution operators in pure torch, each with the operator's own signature.

They run on every device for which no binary is loaded (MPS, XPU, a machine without a compiler), and in ONNX exports;
the compiled kernels are tested against them. The reference of each pass in passes.py stands there, beside its schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.filters.basis import compose_weight
from explainfix_ext.filters.hadamard import compose_hadamard


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
    """Convolves x (N, C, H, W) with the composed weight; the result has x's dtype and memory format.

    Args:
        basis, steering, scale: of the bank, as `compose_weight` takes them.
        packed: with plan 0, the dense plan, the weight if it is composed already. Other plans pack for their kernels
            only: it is ignored here.
        bias, stride, padding, dilation, groups: as for `F.conv2d`.
    """
    weight = packed if plan == 0 and packed is not None else compose_weight(basis, steering, scale, x.dtype)
    return _conv(x, weight, bias, stride, padding, dilation, groups)


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
    """Returns the gradient of `fixed_conv2d` with respect to x, whose height and width were `input_size`."""
    weight = packed if plan == 0 and packed is not None else compose_weight(basis, steering, scale, grad.dtype)
    return _input_grad(grad, weight, input_size, stride, padding, dilation, groups)


def hadamard_conv2d(
    x: Tensor,
    columns: Tensor,
    rows: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    packed: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    order: int,
    stages: int,
    scale: float,
    plan: int,
) -> Tensor:
    """Convolves x (N, C, H, W) with the composed weight; the result has x's dtype and memory format.

    Args:
        columns, rows, outputs, inputs, order, stages, scale: as `compose_hadamard` takes them.
        packed: the weight where it is composed already, in plan 0; else nothing that is read here.
        bias, stride, padding, dilation, groups: as for `F.conv2d`.
    """
    if plan != 0 or packed is None:
        packed = compose_hadamard(columns, rows, outputs, inputs, order, stages, scale, x.dtype)
    return _conv(x, packed, bias, stride, padding, dilation, groups)


def hadamard_conv2d_input_grad(
    grad: Tensor,
    columns: Tensor,
    rows: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    packed: Tensor | None,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    order: int,
    stages: int,
    scale: float,
    plan: int,
) -> Tensor:
    """Returns the gradient of `hadamard_conv2d` with respect to x, whose height and width were `input_size`."""
    if plan != 0 or packed is None:
        packed = compose_hadamard(columns, rows, outputs, inputs, order, stages, scale, grad.dtype)
    return _input_grad(grad, packed, input_size, stride, padding, dilation, groups)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    return F.conv2d(x, weight, bias, *geometry).contiguous(memory_format=memory_format_of(x))


def _input_grad(
    grad: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    x = grad.new_empty(1).expand(grad.shape[0], weight.shape[1] * groups, *input_size)  # only its shape is read
    gx, _, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
    )
    return gx.contiguous(memory_format=memory_format_of(grad))
