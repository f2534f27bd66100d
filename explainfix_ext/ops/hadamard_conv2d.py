"""This module defines the two operators of hadamard banks: schemas, fake implementations, FLOP formulas.

    explainfix::hadamard_conv2d             y  = conv2d(x, W(filters), bias)
    explainfix::hadamard_conv2d_input_grad  dx = its gradient with respect to x

They take a horizontal filter for each input, a fast Walsh-Hadamard transform over the channels, and a vertical filter
for each output: W (O, I/groups, kh, kw) is never made. filters/hadamard.py has the formula, and the meaning of columns,
rows, outputs, inputs, order and stages. Where no kernel does a call (plan 0, other dtypes, dilation) W is composed in
scratch memory; `packed` is W where it is composed already. transposes.py makes each operator the other's derivative.

The C++ is csrc/cpu/ops/hadamard_conv2d.cpp; other devices have the pure-torch reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from explainfix_ext._support.layout import memory_format_of

from . import reference
from .transposes import Transposes

_BANK = "Tensor columns, Tensor rows, Tensor outputs, Tensor inputs, Tensor? packed"
_GEOMETRY = (
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, int groups, int order, int stages, float scale, int plan"
)

torch.library.define(
    "explainfix::hadamard_conv2d",
    f"(Tensor x, {_BANK}, Tensor? bias, {_GEOMETRY}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "explainfix::hadamard_conv2d_input_grad",
    f"(Tensor grad, {_BANK}, SymInt[2] input_size, {_GEOMETRY}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("explainfix::hadamard_conv2d", "CompositeExplicitAutograd", reference.hadamard_conv2d)
torch.library.impl(
    "explainfix::hadamard_conv2d_input_grad", "CompositeExplicitAutograd", reference.hadamard_conv2d_input_grad
)


@torch.library.register_fake("explainfix::hadamard_conv2d")
def _(
    x: Tensor, columns: Tensor, rows: Tensor, outputs: Tensor, inputs: Tensor, packed: Tensor | None,
    bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], *others: Any,
) -> Tensor:  # fmt: skip
    kernel = (columns.shape[2], rows.shape[4])
    out = [(x.shape[2 + a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(2)]
    size = (x.shape[0], columns.shape[1], *out)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


@torch.library.register_fake("explainfix::hadamard_conv2d_input_grad")
def _(
    grad: Tensor, columns: Tensor, rows: Tensor, outputs: Tensor, inputs: Tensor, packed: Tensor | None,
    input_size: Sequence[int], *others: Any,
) -> Tensor:  # fmt: skip
    size = (grad.shape[0], rows.shape[2] * rows.shape[3], *input_size)
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format_of(grad))


PAIR = Transposes("hadamard_conv2d", "hadamard_conv2d_input_grad", bank=5)


# As of the other operators: the multiply-adds of the dense convolution.
@register_flop_formula(torch.ops.explainfix.hadamard_conv2d)
def _conv_flops(x: Any, columns: Any, rows: Any, *others: Any, out_shape: Any, **options: Any) -> int:
    return 2 * math.prod(out_shape) * rows[3] * rows[4] * columns[2]


@register_flop_formula(torch.ops.explainfix.hadamard_conv2d_input_grad)
def _input_grad_flops(grad: Any, columns: Any, rows: Any, *others: Any, **options: Any) -> int:
    return 2 * math.prod(grad) * rows[3] * rows[4] * columns[2]
