"""This module differentiates two operators that are each other's transpose: a fixed convolution and its input gradient.

    conv        (x,    *bank, bias,       *geometry)  ->  y = conv2d(x, W(bank), bias)
    input_grad  (grad, *bank, input_size, *geometry)  ->  dx

Each is linear in its first argument, so each is the other's derivative. Neither needs an activation for that: only the
bank's tensors are kept for the backward pass, and the layer holds them anyway.

Three mechanisms are served. register_autograd is for raw calls, torch.compile and torch.export. But torch.func (grad,
vmap, jvp) does not support it (an open issue of PyTorch), so functional.py calls autograd.Functions in eager mode:
`eager` where no transform is at work, since torch binds the arguments of one that transforms can take by inspection, at
each call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from explainfix_ext._support.layout import memory_format_of

# Asked what a call on a GPU is to have for arguments, by (operator, place of `packed`, arguments): plans/tune.py.
choose: Callable[[Any, int, tuple], tuple] | None = None


class Transposes:
    """This object gives a pair of operators every kind of differentiation.

    Args:
        conv, input_grad: their names. The geometry begins with stride, padding and dilation.
        bank: how many arguments are the bank's tensors (or None); they stand after the first argument.

    Attributes:
        conv, input_grad: the operators.
        conv_values: the convolution without a look for derivatives, which costs time, too.
        eager: applies an autograd.Function for ordinary eager mode, in less than half the time of Python's other ones.
        transformable: one that torch.func can transform.
    """

    def __init__(self, conv: str, input_grad: str, bank: int) -> None:
        self.conv, self.input_grad = (getattr(torch.ops.explainfix, name).default for name in (conv, input_grad))
        self.bank = bank
        self.conv_values, self.input_grad_values = (_values_of(op, bank) for op in (self.conv, self.input_grad))
        self.eager = _without_binding(_eager(self))
        self.transformable, self.transformable_grad = _transformable(self)
        names = f"explainfix::{conv}", f"explainfix::{input_grad}"
        backward = functools.partial(self.conv_backward, input_grad=self.input_grad)
        grad_backward = functools.partial(self.grad_backward, conv=self.conv)
        torch.library.register_autograd(names[0], backward, setup_context=self.conv_context)
        torch.library.register_autograd(names[1], grad_backward, setup_context=self.grad_context)
        torch.library.register_vmap(names[0], functools.partial(self.conv_vmap, self.conv))
        torch.library.register_vmap(names[1], functools.partial(self.grad_vmap, self.input_grad))

    def conv_context(self, ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, bank = inputs[0], self.bank
        ctx.save_for_backward(*inputs[1 : 1 + bank])
        ctx.geometry = inputs[2 + bank :]
        ctx.input_shape = x.shape
        ctx.channels_last = memory_format_of(x) is torch.channels_last

    def conv_backward(self, ctx: Any, grad: Tensor, input_grad: Any) -> tuple:
        if ctx.channels_last:  # an expanded gradient, such as that of sum(), has no layout of its own
            grad = grad.movedim(1, -1).contiguous().movedim(-1, 1)  # vmap does not support memory_format
        return self.conv_grads(ctx, grad, input_grad)

    def conv_grads(self, ctx: Any, grad: Tensor, input_grad: Any) -> tuple:
        """Does the same for a gradient in the input's memory format."""
        wants, geometry = ctx.needs_input_grad, ctx.geometry
        dx = input_grad(grad, *ctx.saved_tensors, ctx.input_shape[-2:], *geometry) if wants[0] else None
        dbias = grad.sum((0, 2, 3)) if wants[1 + self.bank] else None
        return (dx, *(None,) * self.bank, dbias, *(None,) * len(geometry))

    def grad_context(self, ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1 : 1 + self.bank])
        ctx.geometry = inputs[2 + self.bank :]
        ctx.input_size = inputs[1 + self.bank]

    def save_for_forward(self, context: Callable[[Any, tuple, Any], None]) -> Any:
        """Returns the context with the bank also saved for forward-mode differentiation."""

        def setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
            context(ctx, inputs, output)
            ctx.save_for_forward(*inputs[1 : 1 + self.bank])

        return setup

    def grad_backward(self, ctx: Any, gdx: Tensor, conv: Any) -> tuple:
        dgrad = conv(gdx, *ctx.saved_tensors, None, *ctx.geometry)
        return (dgrad, *(None,) * (1 + self.bank + len(ctx.geometry)))

    def _fold(self, in_dims: tuple, batch: int, first: Tensor) -> tuple[Tensor, Any]:
        """Folds vmap's axis of B samples into the images, (B, N, C, H, W) -> (B N, C, H, W), and gives the inverse."""
        if any(dim is not None for dim in in_dims[1 : 1 + self.bank]):
            raise ValueError("vmap over the filters is not supported: in_dims of a bank's tensors must be None")
        dim = in_dims[0]
        folded = first.expand(batch, *first.shape) if dim is None else first.movedim(dim, 0)
        return folded.flatten(0, 1), lambda y: y.unflatten(0, folded.shape[:2])

    def conv_vmap(self, conv: Any, info: Any, in_dims: tuple, x: Tensor, *others: Any) -> tuple[Tensor, int]:
        x, unfold = self._fold(in_dims, info.batch_size, x)
        bank, bias, geometry = others[: self.bank], others[self.bank], others[self.bank + 1 :]
        dim = in_dims[1 + self.bank]
        if dim is None:
            return unfold(conv(x, *bank, bias, *geometry)), 0
        y = unfold(conv(x, *bank, None, *geometry))
        return y + bias.movedim(dim, 0)[:, None, :, None, None], 0

    def grad_vmap(self, input_grad: Any, info: Any, in_dims: tuple, grad: Tensor, *others: Any) -> tuple[Tensor, int]:
        grad, unfold = self._fold(in_dims, info.batch_size, grad)
        return unfold(input_grad(grad, *others)), 0


def transformed() -> bool:
    """Tells whether forward-mode differentiation or a transform of torch.func is at work."""
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _values_of(op: Any, packed: int) -> Any:
    """Returns an operator that computes values and looks for no derivative. packed: the place of that argument."""

    def run(*args: Any) -> Tensor:
        if choose is not None and args[0].is_cuda:
            args = choose(op, packed, args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return run


def _eager(pair: Transposes) -> type[torch.autograd.Function]:
    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            output = pair.conv_values(*args)
            pair.conv_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple:
            if transformed():
                return pair.conv_backward(ctx, grad, pair.transformable_grad.apply)
            # create_graph=True gets the operator: with is_grads_batched=True, torch batches by a mechanism of its own,
            # in which a Function's result has no graph.
            values = pair.input_grad if torch.is_grad_enabled() else pair.input_grad_values
            if ctx.channels_last and grad.is_contiguous(memory_format=torch.channels_last):
                return pair.conv_grads(ctx, grad, values)
            return pair.conv_backward(ctx, grad, values)

    return Eager


def _without_binding(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """Returns `function.apply` without what torch does in Python at each call for functions that transforms may take:
    of that, only a wrapper that a transform has left behind is looked for."""
    apply: Callable[..., Tensor] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    unwrapped = torch._C._functorch.unwrap_if_dead

    def call(x: Tensor, *others: Any) -> Tensor:
        return apply(unwrapped(x), *others)

    return call


def _transformable(pair: Transposes) -> tuple[type[torch.autograd.Function], type[torch.autograd.Function]]:
    class Conv(torch.autograd.Function):
        setup_context = staticmethod(pair.save_for_forward(pair.conv_context))

        @staticmethod
        def forward(*args: Any) -> Tensor:
            return pair.conv(*args)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple:
            return pair.conv_backward(ctx, grad, InputGrad.apply)

        @staticmethod
        def jvp(ctx: Any, dx: Tensor | None, *others: Any) -> Tensor:
            dbias = others[pair.bank]
            if dx is None:
                dx = dbias.new_zeros(*ctx.input_shape)
            return Conv.apply(dx, *ctx.saved_tensors, dbias, *ctx.geometry)

        @staticmethod
        def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
            return pair.conv_vmap(Conv.apply, info, in_dims, *args)

    class InputGrad(torch.autograd.Function):
        setup_context = staticmethod(pair.save_for_forward(pair.grad_context))

        @staticmethod
        def forward(*args: Any) -> Tensor:
            return pair.input_grad(*args)

        @staticmethod
        def backward(ctx: Any, gdx: Tensor) -> tuple:
            return pair.grad_backward(ctx, gdx, Conv.apply)

        @staticmethod
        def jvp(ctx: Any, dgrad: Tensor, *others: Any) -> Tensor:
            return InputGrad.apply(dgrad, *ctx.saved_tensors, ctx.input_size, *ctx.geometry)

        @staticmethod
        def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
            return pair.grad_vmap(InputGrad.apply, info, in_dims, *args)

    return Conv, InputGrad
