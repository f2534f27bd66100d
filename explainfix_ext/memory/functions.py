"""Autograd functions that keep a replay, or a bit, where torch keeps an activation. The drop-ins call them.

All that is kept goes through save_for_backward, so that saved-tensor hooks and checks see it. Each function can be
differentiated once: twice raises torch's error for that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.ops import max_pool, passes

from .notes import Handover, taken
from .ownership import once_differentiable, own
from .ranks import Ranks
from .replay import Rebuilt, Replay

aten = torch.ops.aten
_weight_grad = aten.convolution_backward.default


class ConvGeometry(NamedTuple):
    """Holds the arguments of aten.convolution after input, weight and bias, in its order."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


class Convolution(Function):
    """Computes a convolution or transposed convolution.

    For the gradient of a learned weight it keeps a replay of its input, or of those pixels that it reads;
    `replay_geometry` is the convolution's geometry on what is rebuilt. For a frozen weight, `replay` is None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        replay: Replay | None,
        geometry: ConvGeometry,
        replay_geometry: ConvGeometry,
    ) -> Tensor:
        ctx.program = replay.program if replay else None
        ctx.geometry, ctx.replay_geometry = geometry, replay_geometry
        ctx.shape, ctx.layout = x.shape, memory_format_of(x)
        ctx.save_for_backward(weight, *(replay.tensors if replay else ()))
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        weight, *tensors = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad = grad.contiguous(memory_format=ctx.layout)
        dx = dweight = None
        if wants_weight:  # first, so that x is gone before dx comes
            x = ctx.program.rebuild(tensors)
            dweight = _weight_grad(grad, x, weight, None, *ctx.replay_geometry, (False, True, False))[1]
            del x
        if wants_x:
            dx = _input_grad(grad, weight, ctx.shape, ctx.geometry)
        dbias = grad.sum((0, *range(2, grad.ndim))) if wants_bias else None
        return dx, dweight, dbias, None, None, None


def _input_grad(grad: Tensor, weight: Tensor, shape: torch.Size, geometry: ConvGeometry) -> Tensor:
    """Computes the input's gradient by the transposed convolution.

    aten.convolution_backward would ask for the input, and write out one that is expanded from a single number.
    """
    stride, padding, dilation, transposed, _, groups = geometry
    rest = [0] * len(stride)
    if not transposed and max(stride) > 1:
        sizes, kernel = grad.shape[2:], weight.shape[2:]
        rest = [
            shape[2 + a] - ((sizes[a] - 1) * stride[a] - 2 * padding[a] + dilation[a] * (kernel[a] - 1) + 1)
            for a in range(len(sizes))
        ]
    return torch.convolution(grad, weight, None, stride, padding, dilation, not transposed, rest, groups)


class BatchNorm(Function):
    """Computes alpha x + beta, and keeps a replay of x.

    `of_batch` says that the statistics are those of x (with `ranks`, of several processes' x) and not running ones, so
    that the gradient flows through them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        factors: Tensor,
        replay: Replay,
        of_batch: bool,
        handover: Handover | None,
        ranks: Ranks | None,
    ) -> Tensor:
        ctx.program, ctx.handover, ctx.of_batch, ctx.ranks = replay.program, handover, of_batch, ranks
        ctx.layout = memory_format_of(x)
        ctx.save_for_backward(factors, *replay.tensors)
        return passes.affine_act(x, factors, 0, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        factors, *tensors = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        dx = sums = None
        source = Rebuilt(ctx.program, tensors, grad.shape, twice=wants_x, given=taken(ctx.handover))
        if wants_weight or wants_bias or ctx.of_batch:
            parts = [passes.batch_norm_sums(source.of(grad, i), source.part(i), factors) for i in source.slices]
            sums = functools.reduce(torch.add, parts)
        if wants_x:
            dx = own(grad, ctx.layout)
            if ctx.of_batch:
                count = grad.numel() / grad.shape[1]
                of_all = sums if ctx.ranks is None else ctx.ranks.mean_sums(sums)
                for i in source.slices:
                    to, of = source.of(dx, i), source.of(grad, i)
                    passes.batch_norm_backward(to, of, source.part(i), factors, of_all, count)
            else:
                torch.mul(grad, factors[2].view(-1, *(1,) * (grad.ndim - 2)), out=dx)
        dbias, dweight = (None, None) if sums is None else sums.unbind()
        return dx, dweight if wants_weight else None, dbias if wants_bias else None, *(None,) * 5


class Activation(Function):
    """Computes an activation of y = alpha x + beta, and rebuilds x for its derivative.

    `replay` is that of the result: its last step is the activation, and its last tensor has the BatchNorm's factors.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, act: str, slope: float, inplace: bool, replay: Replay, handover: Handover | None
    ) -> Tensor:
        ctx.act, ctx.slope, ctx.layout = passes.ACTIVATIONS[act], slope, memory_format_of(y)
        ctx.program, ctx.handover = replay.program.without_last, handover
        ctx.save_for_backward(*replay.tensors)
        return _forward_activation(ctx, y, act, slope, inplace)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        *tensors, factors = ctx.saved_tensors
        source = Rebuilt(ctx.program, tensors, grad.shape, twice=True, given=taken(ctx.handover))
        dx = own(grad, ctx.layout)
        for i in source.slices:
            to, of = source.of(dx, i), source.of(grad, i)
            passes.affine_act_backward(to, of, source.part(i), factors, ctx.act, ctx.slope)
        if ctx.handover is not None:
            ctx.handover.put(source.whole())
        return dx, None, None, None, None, None


class RebuiltActivation(Function):
    """Computes an activation, and keeps a replay of its input y, which is not a BatchNorm's output."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, act: str, slope: float, inplace: bool, replay: Replay) -> Tensor:
        ctx.act, ctx.slope, ctx.program = act, slope, replay.program
        ctx.save_for_backward(*replay.tensors)
        return _forward_activation(ctx, y, act, slope, inplace)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        y = ctx.program.rebuild(ctx.saved_tensors).requires_grad_()
        with torch.enable_grad():
            result = passes.activate(y, ctx.act, ctx.slope)
        return *torch.autograd.grad(result, y, grad), None, None, None, None


class MaskedActivation(Function):
    """Computes ReLU and its kin, and keeps a bit for each element: is its derivative 1?"""

    @staticmethod
    def forward(ctx: Any, y: Tensor, act: str, slope: float, inplace: bool) -> Tensor:
        ctx.act, ctx.slope, ctx.layout = passes.ACTIVATIONS[act], slope, memory_format_of(y)
        ctx.save_for_backward(passes.act_mask(y, passes.ACTIVATIONS[act]))
        return _forward_activation(ctx, y, act, slope, inplace)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (mask,) = ctx.saved_tensors
        dx = own(grad, ctx.layout)
        passes.mask_backward(dx, grad, mask, ctx.act, ctx.slope)
        return dx, None, None, None


def _forward_activation(ctx: Any, y: Tensor, act: str, slope: float, inplace: bool) -> Tensor:
    if not inplace:
        return passes.activate(y, act, slope)
    passes.activate(y, act, slope, inplace=True)
    ctx.mark_dirty(y)
    return y


class MaxPool(Function):
    """Pools by the maximum, and keeps the place of each maximum in its window: one byte."""

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
    """Makes a stand-in for a pooling's input: aten asks for it, and needs its shape and layout alone."""
    if layout == torch.contiguous_format:
        return grad.new_empty(1).expand(shape)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


class AvgPool(Function):
    """Pools by the mean, and keeps the shape of its input alone."""

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
    """Drops elements by the same random numbers as torch, and keeps a bit for each element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, inplace: bool) -> Tensor:
        factor = 1 / (1 - p) if p < 1 else 0.0
        if x.device.type == "cuda":
            y, kept = torch.native_dropout(x, p, True)
            y, kept = x.copy_(y) if inplace else y, kept.to(x.dtype)
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
        dx = own(grad, ctx.layout)
        passes.mask_backward(dx, grad, ctx.saved_tensors[0], passes.ACTIVATIONS["leaky_relu"], 0.0)  # NaN * 0 is NaN
        return dx.mul_(ctx.factor), None, None


class ChannelScale(Function):
    """Multiplies x by scale (N, C, 1, 1), as squeeze-and-excitation does, and keeps a replay of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, replay: Replay) -> Tensor:
        ctx.program = replay.program
        ctx.save_for_backward(scale, *replay.tensors)
        return x * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        scale, *tensors = ctx.saved_tensors
        x = ctx.program.rebuild(tensors)
        dscale = torch.einsum("nchw,nchw->nc", x, grad)[:, :, None, None]
        dx = own(grad, memory_format_of(x))
        return torch.mul(grad, scale, out=dx), dscale, None
