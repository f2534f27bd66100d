"""This module defines the two operators of index and coefficient banks: schemas, fake implementations, FLOP formulas.

    explainfix::fixed_conv2d             y  = conv2d(x, W(bank), bias)
    explainfix::fixed_conv2d_input_grad  dx = its gradient with respect to x

transposes.py makes each the other's derivative.

The pure-torch reference is the implementation for every device. The binaries override it for CPU and CUDA (the C++ is
csrc/cpu/ops/fixed_conv2d.cpp and csrc/cuda/launch/fixed_conv2d.cu), so without a binary the package works, but slowly.

The argument `steering` is a bank's index, uint8 (O, I/groups), or its coefficients, floating (O, I/groups, L).
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

_BANK = "Tensor basis, Tensor steering, Tensor? packed"
_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, int groups, float scale, int plan"

torch.library.define(
    "explainfix::fixed_conv2d",
    f"(Tensor x, {_BANK}, Tensor? bias, {_GEOMETRY}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "explainfix::fixed_conv2d_input_grad",
    f"(Tensor grad, {_BANK}, SymInt[2] input_size, {_GEOMETRY}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# Returns the instruction set of the CPU kernels: 0 plain, 1 AVX2, 2 AVX-512; a `level` >= 0 limits it. The dispatcher
# finds the CPU's implementation by the device of a tensor argument, hence `like`.
torch.library.define("explainfix::cpu_isa", "(Tensor like, int level) -> int")
torch.library.impl("explainfix::cpu_isa", "CompositeExplicitAutograd", lambda like, level: 0)
torch.library.impl("explainfix::fixed_conv2d", "CompositeExplicitAutograd", reference.fixed_conv2d)
torch.library.impl(
    "explainfix::fixed_conv2d_input_grad", "CompositeExplicitAutograd", reference.fixed_conv2d_input_grad
)

fixed_conv2d = torch.ops.explainfix.fixed_conv2d.default
fixed_conv2d_input_grad = torch.ops.explainfix.fixed_conv2d_input_grad.default
cpu_isa = torch.ops.explainfix.cpu_isa.default


@torch.library.register_fake("explainfix::fixed_conv2d")
def _(
    x: Tensor, basis: Tensor, steering: Tensor, packed: Tensor | None, bias: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, scale: float, plan: int,
) -> Tensor:  # fmt: skip
    out = [
        (x.shape[2 + a] + 2 * padding[a] - dilation[a] * (basis.shape[1 + a] - 1) - 1) // stride[a] + 1
        for a in range(2)
    ]
    size = (x.shape[0], steering.shape[0], *out)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


@torch.library.register_fake("explainfix::fixed_conv2d_input_grad")
def _(
    grad: Tensor, basis: Tensor, steering: Tensor, packed: Tensor | None, input_size: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, scale: float, plan: int,
) -> Tensor:  # fmt: skip
    size = (grad.shape[0], steering.shape[1] * groups, *input_size)
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format_of(grad))


PAIR = Transposes("fixed_conv2d", "fixed_conv2d_input_grad", bank=3)


# FlopCounterMode counts the mathematics of an operator, whatever its kernel leaves out: those of the dense convolution.
@register_flop_formula(torch.ops.explainfix.fixed_conv2d)
def _conv_flops(x: Any, basis: Any, steering: Any, *others: Any, out_shape: Any, **options: Any) -> int:
    return 2 * math.prod(out_shape) * steering[1] * math.prod(basis[1:])


@register_flop_formula(torch.ops.explainfix.fixed_conv2d_input_grad)
def _input_grad_flops(grad: Any, basis: Any, steering: Any, *others: Any, **options: Any) -> int:
    return 2 * math.prod(grad) * steering[1] * math.prod(basis[1:])
