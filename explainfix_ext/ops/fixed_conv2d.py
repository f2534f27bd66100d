"""This module defines the two convolution operators: schemas, fake implementations, and every kind of differentiation.

    explainfix::fixed_conv2d             y  = conv2d(x, W(bank), bias)
    explainfix::fixed_conv2d_input_grad  dx = its gradient with respect to x

Each is linear in its first argument and the other one is its transpose, so each is the other's derivative. Neither
needs an activation for that: only the bank is kept for the backward pass, and the layer holds it anyway.

The pure-torch reference is the implementation for every device. The binaries override it for CPU and CUDA (the C++ is
csrc/cpu/ops/fixed_conv2d.cpp and csrc/cuda/launch/fixed_conv2d.cu), so without a binary the package works, but slowly.

The argument `steering` is a bank's index, uint8 (O, I/groups), or its coefficients, floating (O, I/groups, L).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from explainfix_ext._support.layout import memory_format_of

from . import reference

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


# --- differentiation -----------------------------------------------------------------------------------------------
# The functions below serve three mechanisms. register_autograd is for raw calls, torch.compile and torch.export. But
# torch.func (grad, vmap, jvp) does not support it (an open issue of PyTorch), so functional.py calls the
# autograd.Functions at the end of this file in eager mode: EagerFunction where no transform is at work, since torch
# binds the arguments of one that transforms can take by inspection, at each call.


def _keep_bank(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, basis, steering, packed = inputs[:4]
    ctx.save_for_backward(basis, steering, packed)
    ctx.save_for_forward(basis, steering, packed)


def _conv_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _keep_bank(ctx, inputs, output)
    x = inputs[0]
    ctx.input_shape, ctx.input_size, ctx.geometry = x.shape, x.shape[-2:], inputs[5:]
    ctx.channels_last = memory_format_of(x) is torch.channels_last


def _conv_backward(ctx: Any, grad: Tensor, input_grad: Any = fixed_conv2d_input_grad) -> tuple:
    if ctx.channels_last:  # an expanded gradient, such as that of sum(), has no layout of its own
        grad = grad.movedim(1, -1).contiguous().movedim(-1, 1)  # vmap does not support memory_format
    wants_x, wants_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[4]
    dx = input_grad(grad, *ctx.saved_tensors, ctx.input_size, *ctx.geometry) if wants_x else None
    dbias = grad.sum((0, 2, 3)) if wants_bias else None
    return (dx, None, None, None, dbias, *(None,) * 6)


def _grad_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _keep_bank(ctx, inputs, output)
    ctx.input_size, ctx.geometry = inputs[4], inputs[5:]


def _grad_backward(ctx: Any, gdx: Tensor, conv: Any = fixed_conv2d) -> tuple:
    return (conv(gdx, *ctx.saved_tensors, None, *ctx.geometry), *(None,) * 10)


torch.library.register_autograd("explainfix::fixed_conv2d", _conv_backward, setup_context=_conv_context)
torch.library.register_autograd("explainfix::fixed_conv2d_input_grad", _grad_backward, setup_context=_grad_context)


def _fold(in_dims: tuple, batch: int, first: Tensor, *bank: Any) -> tuple[Tensor, Any]:
    """Folds vmap's axis of B samples into the images, (B, N, C, H, W) -> (B N, C, H, W); also returns the inverse."""
    if any(dim is not None for dim in in_dims[1:4]):
        raise ValueError("vmap over the filters is not supported: in_dims of a bank's tensors must be None")
    dim = in_dims[0]
    folded = first.expand(batch, *first.shape) if dim is None else first.movedim(dim, 0)
    return folded.flatten(0, 1), lambda y: y.unflatten(0, folded.shape[:2])


def _conv_vmap(conv: Any, info: Any, in_dims: tuple, x: Tensor, *others: Any) -> tuple[Tensor, int]:
    x, unfold = _fold(in_dims, info.batch_size, x)
    bank, bias, geometry = others[:3], others[3], others[4:]
    if in_dims[4] is None:
        return unfold(conv(x, *bank, bias, *geometry)), 0
    y = unfold(conv(x, *bank, None, *geometry))
    return y + bias.movedim(in_dims[4], 0)[:, None, :, None, None], 0


def _grad_vmap(input_grad: Any, info: Any, in_dims: tuple, grad: Tensor, *others: Any) -> tuple[Tensor, int]:
    grad, unfold = _fold(in_dims, info.batch_size, grad)
    return unfold(input_grad(grad, *others)), 0


class FixedConv2dFunction(torch.autograd.Function):
    """This Function calls the operator `fixed_conv2d`, with the same arguments, so that torch.func can transform it."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return fixed_conv2d(*args)

    setup_context = staticmethod(_conv_context)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _conv_backward(ctx, grad, FixedConv2dInputGradFunction.apply)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, *others: Any) -> Tensor:
        dbias = others[3]
        if dx is None:
            dx = dbias.new_zeros(*ctx.input_shape)
        return FixedConv2dFunction.apply(dx, *ctx.saved_tensors, dbias, *ctx.geometry)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return _conv_vmap(FixedConv2dFunction.apply, info, in_dims, *args)


class FixedConv2dInputGradFunction(torch.autograd.Function):
    """This Function does the same for the operator `fixed_conv2d_input_grad`."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return fixed_conv2d_input_grad(*args)

    setup_context = staticmethod(_grad_context)

    @staticmethod
    def backward(ctx: Any, gdx: Tensor) -> tuple:
        return _grad_backward(ctx, gdx, FixedConv2dFunction.apply)

    @staticmethod
    def jvp(ctx: Any, dgrad: Tensor, *others: Any) -> Tensor:
        return FixedConv2dInputGradFunction.apply(dgrad, *ctx.saved_tensors, ctx.input_size, *ctx.geometry)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return _grad_vmap(FixedConv2dInputGradFunction.apply, info, in_dims, *args)


torch.library.register_vmap("explainfix::fixed_conv2d", functools.partial(_conv_vmap, fixed_conv2d))
torch.library.register_vmap(
    "explainfix::fixed_conv2d_input_grad", functools.partial(_grad_vmap, fixed_conv2d_input_grad)
)


# FlopCounterMode counts the mathematics of an operator, whatever its kernel leaves out: those of the dense convolution.
@register_flop_formula(torch.ops.explainfix.fixed_conv2d)
def _conv_flops(x: Any, basis: Any, steering: Any, *others: Any, out_shape: Any, **options: Any) -> int:
    return 2 * math.prod(out_shape) * steering[1] * math.prod(basis[1:])


@register_flop_formula(torch.ops.explainfix.fixed_conv2d_input_grad)
def _input_grad_flops(grad: Any, basis: Any, steering: Any, *others: Any, **options: Any) -> int:
    return 2 * math.prod(grad) * steering[1] * math.prod(basis[1:])


def transformed() -> bool:
    """Tells whether forward-mode differentiation or a transform of torch.func is at work."""
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _only(op: Any) -> Any:
    """Returns an operator that computes values and looks for no derivative: register_autograd costs time, too."""

    def run(*args: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return run


conv_values, _input_grad_values = _only(fixed_conv2d), _only(fixed_conv2d_input_grad)


class EagerFunction(torch.autograd.Function):
    """This Function is FixedConv2dFunction for ordinary eager mode, in less than half the time of Python's."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        output = conv_values(*args)
        _conv_context(ctx, args, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        if transformed():
            return _conv_backward(ctx, grad, FixedConv2dInputGradFunction.apply)
        # create_graph=True gets the operator: with is_grads_batched=True, torch batches by a mechanism of its own, in
        # which a Function's result has no graph.
        return _conv_backward(ctx, grad, fixed_conv2d_input_grad if torch.is_grad_enabled() else _input_grad_values)
