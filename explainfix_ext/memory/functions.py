"""What modules.py runs: autograd functions that keep a recipe, or a bit, where torch keeps an activation.

All that is kept goes through save_for_backward, so that saved-tensor hooks and checks see it. Each function can be
differentiated once: twice raises torch's error for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.ops import max_pool, passes

from .ownership import own
from .replay import ALL, PART, Recipe, rebuild

aten = torch.ops.aten


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class Convolution(Function):
    """A convolution or transposed convolution. For the gradient of a learned weight, `kept` makes its input again (or
    what `kept_run` needs of it); a frozen weight needs none. `run`: stride, padding, dilation, transposed,
    output_padding, groups."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Recipe | None, run: tuple, kept_run: tuple
    ) -> Tensor:
        ctx.steps, ctx.run, ctx.kept_run = kept.steps if kept else None, run, kept_run
        ctx.shape, ctx.layout = x.shape, memory_format_of(x)
        ctx.save_for_backward(weight, *(kept.tensors if kept else ()))
        return aten.convolution(x, weight, bias, *run)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        weight, *tensors = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad = grad.contiguous(memory_format=ctx.layout)
        dx = dweight = None
        if wants_weight:  # first, so that x is gone before dx comes
            x = rebuild(ctx.steps, tensors)
            dweight = aten.convolution_backward(grad, x, weight, None, *ctx.kept_run, [False, True, False])[1]
            del x
        if wants_x:
            dx = _input_grad(grad, weight, ctx.shape, *ctx.run)
        dbias = grad.sum((0, 2, 3)) if wants_bias else None
        return dx, dweight, dbias, None, None, None


def _input_grad(
    grad: Tensor,
    weight: Tensor,
    shape: torch.Size,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """By the transposed convolution. aten.convolution_backward asks for x, and would make an expanded one whole."""
    rest = [
        0 if transposed else shape[a] - ((grad.shape[a] - 1) * s - 2 * p + d * (weight.shape[a] - 1) + 1)
        for a, s, p, d in zip((2, 3), stride, padding, dilation, strict=True)
    ]
    return aten.convolution(grad, weight, None, stride, padding, dilation, not transposed, rest, groups)


class BatchNorm(Function):
    """alpha x + beta with the given statistics. `kept` makes x again; `overwrite`: into x's memory."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: tuple[Tensor, Tensor, Tensor, Tensor],
        kept: Recipe,
        of_batch: bool,
        overwrite: bool,
    ) -> Tensor:
        mean, invstd, alpha, beta = statistics
        ctx.kept, ctx.of_batch, ctx.layout = kept.program, of_batch, memory_format_of(x)
        ctx.save_for_backward(mean, invstd, alpha, *kept.tensors)
        if not overwrite:
            return passes.affine_act(x, alpha, beta, 0, 0.0)
        passes.affine_act_(x, alpha, beta, 0, 0.0)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        mean, invstd, alpha, *tensors = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        dx = dweight = dbias = None
        source = _Source(ctx.kept, tensors, grad, twice=wants_x)
        if wants_weight or wants_bias or ctx.of_batch:
            sums = [passes.batch_norm_sums(grad[i], source.part(i), mean, invstd) for i in source.pieces(grad)]
            dbias, dweight = (torch.stack(parts).sum(0) for parts in zip(*sums, strict=True))
        if wants_x:
            a, b, c = alpha, torch.zeros_like(alpha), torch.zeros_like(alpha)
            if ctx.of_batch:
                count = grad.numel() // grad.shape[1]
                b = -alpha * invstd * dweight / count
                c = -alpha * dbias / count - b * mean
            dx = own(grad, ctx.layout)
            for i in source.pieces(dx):
                passes.channel_combine_(dx[i], source.part(i) if ctx.of_batch else dx[i], a, b, c)
        return dx, dweight if wants_weight else None, dbias if wants_bias else None, None, None, None, None


class _Source:
    """What a recipe is for, in the backward pass: whole where that costs little memory or parts would cost much time,
    else in parts of a few images, made again each time.

    `like`: a tensor of its size. `twice`: all of it will be needed again.
    """

    def __init__(self, kept: Recipe, tensors: Sequence[Tensor], like: Tensor, twice: bool) -> None:
        self.kept, self.tensors = kept, tensors
        plain = len(kept.steps) == 1 and not kept.lossy
        self.whole = bool(kept.handoff) or (twice and kept.deep) or plain or like.numel() < 2 * PART
        self.x: Tensor | None = None

    def pieces(self, like: Tensor) -> list[slice]:
        if self.whole:
            return [ALL]
        step = -(-like.shape[0] // 8)
        return [slice(i, i + step) for i in range(0, like.shape[0], step)]

    def part(self, images: slice) -> Tensor:
        if not self.whole:
            return rebuild(self.kept.steps, self.tensors, images)
        if self.x is None:
            self.x = self.kept.handoff.pop() if self.kept.handoff else rebuild(self.kept.steps, self.tensors)
        return self.x


class Activation(Function):
    """An activation whose derivative is taken from the recipe of its result."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, act: str, slope: float, inplace: bool, kept: Recipe) -> Tensor:
        ctx.act, ctx.slope, ctx.kept, ctx.layout = act, slope, kept.before_last, memory_format_of(y)
        ctx.save_for_backward(*kept.tensors)
        return _forward_activation(ctx, y, act, slope, inplace)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        *tensors, alpha, beta = ctx.saved_tensors
        source = _Source(ctx.kept, tensors, grad, twice=True)
        grad = own(grad, ctx.layout)
        for i in source.pieces(grad):
            passes.affine_act_backward_(grad[i], source.part(i), alpha, beta, passes.ACTIVATIONS[ctx.act], ctx.slope)
        if ctx.kept.deep:
            ctx.kept.handoff[:] = [source.x]
        return grad, None, None, None, None


class MaskedActivation(Function):
    """ReLU and its kin: a bit for each element is kept."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, act: str, slope: float, inplace: bool) -> Tensor:
        ctx.slope, ctx.layout = slope if act == "leaky_relu" else 0.0, memory_format_of(y)
        ctx.save_for_backward(passes.act_mask(y, passes.ACTIVATIONS[act]))
        return _forward_activation(ctx, y, act, slope, inplace)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (mask,) = ctx.saved_tensors
        grad = own(grad, ctx.layout)
        passes.mask_backward_(grad, mask, ctx.slope)
        return grad, None, None, None


def _forward_activation(ctx: Any, y: Tensor, act: str, slope: float, inplace: bool) -> Tensor:
    if not inplace:
        return passes.activate(y, act, slope)
    passes.activate(y, act, slope, inplace=True)
    ctx.mark_dirty(y)
    return y


class MaxPool(Function):
    """Keeps the place of each maximum in its window: one byte."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: tuple, ceil_mode: bool) -> Tensor:
        y, places = max_pool.max_pool(x, *windows, ceil_mode)
        ctx.windows, ctx.size = windows, x.shape[2:]
        ctx.save_for_backward(places)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return max_pool.max_pool_backward(grad, *ctx.saved_tensors, ctx.size, *ctx.windows), None, None


def _shape_of(grad: Tensor, shape: torch.Size, layout: torch.memory_format) -> Tensor:
    """For an aten function that asks for a pooling's input, and needs its shape and layout alone."""
    if layout == torch.contiguous_format:
        return grad.new_empty(1).expand(shape)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


class AvgPool(Function):
    """Needs its input's shape alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, geometry: tuple) -> Tensor:
        ctx.geometry, ctx.shape, ctx.layout = geometry, x.shape, memory_format_of(x)
        return aten.avg_pool2d(x, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x = _shape_of(grad, ctx.shape, ctx.layout)
        grad = grad.contiguous(memory_format=ctx.layout)
        return aten.avg_pool2d_backward(grad, x, *ctx.geometry), None


class Dropout(Function):
    """Keeps a bit for each element. Draws the same random numbers as torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, inplace: bool) -> Tensor:
        factor = 1 / (1 - p) if p < 1 else 0.0
        if x.device.type == "cuda":
            y, kept = torch.native_dropout(x, p, True)
            y = x.copy_(y) if inplace else y
        else:
            kept = torch.empty_like(x).bernoulli_(1 - p)
            y = x.mul_(kept).mul_(factor) if inplace else torch.mul(x, kept).mul_(factor)
        ctx.factor, ctx.layout = factor, memory_format_of(x)
        ctx.save_for_backward(passes.act_mask(kept, passes.ACTIVATIONS["relu"]))
        if inplace:
            ctx.mark_dirty(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        grad = own(grad, ctx.layout)
        passes.mask_backward_(grad, ctx.saved_tensors[0], 0.0)
        return grad.mul_(ctx.factor), None, None


class ChannelScale(Function):
    """x * scale with scale (N, C, 1, 1), as squeeze-and-excitation has it. `kept` makes x again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, kept: Recipe) -> Tensor:
        ctx.steps = kept.steps
        ctx.save_for_backward(scale, *kept.tensors)
        return x * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        scale, *tensors = ctx.saved_tensors
        x = rebuild(ctx.steps, tensors)
        dscale = torch.einsum("nchw,nchw->nc", x, grad)[:, :, None, None]
        return own(grad, memory_format_of(x)).mul_(scale), dscale, None
