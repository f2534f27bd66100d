"""Defines the drop-ins for GroupNorm, LayerNorm and Linear, which keep replays of their inputs, and their functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from explainfix_ext import functional
from explainfix_ext._support.layout import memory_format_of

from .notes import cast, note, replay_of
from .ownership import once_differentiable
from .replay import Replay, as_type, keep
from .saver import MemorySaver

aten = torch.ops.aten
_LAST, _SECOND = (0, 2, 3, 1), (0, 3, 1, 2)  # brings the channels to the last axis, and back to the second


class Normalization(Function):
    """Normalises over `over`, and keeps a replay of its input.

    `over` is GroupNorm's number of groups, or LayerNorm's shape of the last axes, or "channels" of (N, C, H, W).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, replay: Replay, over: Any, eps: float
    ) -> Tensor:
        y, mean, deviation = _normalize(x, weight, bias, over, eps)
        ctx.program, ctx.over, ctx.layout = replay.program, over, memory_format_of(x)
        ctx.save_for_backward(mean, deviation, weight, bias, *replay.tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        mean, deviation, weight, bias, *tensors = ctx.saved_tensors
        x, wanted, over = ctx.program.rebuild(tensors), list(ctx.needs_input_grad[:3]), ctx.over
        grad = grad.contiguous(memory_format=ctx.layout)
        if isinstance(over, int):
            sizes = (x.shape[0], x.shape[1], x.shape[2:].numel(), over)
            grads = aten.native_group_norm_backward(grad, x, mean, deviation, weight, *sizes, wanted)
        elif over == "channels":
            grad, x = (t.permute(_LAST).contiguous() for t in (grad, x))
            dx, *others = aten.native_layer_norm_backward(grad, x, x.shape[3:], mean, deviation, weight, bias, wanted)
            grads = (dx.permute(_SECOND) if wanted[0] else None, *others)
        else:
            grads = aten.native_layer_norm_backward(grad, x, over, mean, deviation, weight, bias, wanted)
        return *(g if w else None for g, w in zip(grads, wanted, strict=True)), None, None, None


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, over: Any, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(over, int):
        sizes = (x.shape[0], x.shape[1], x.shape[2:].numel(), over)
        return torch.native_group_norm(x, weight, bias, *sizes, eps)
    if over == "channels":
        y, mean, deviation = torch.native_layer_norm(x.permute(_LAST), x.shape[1:2], weight, bias, eps)
        return y.permute(_SECOND), mean, deviation
    return torch.native_layer_norm(x, over, weight, bias, eps)


def _dtype_of(x: Tensor) -> torch.dtype | None:
    """Tells in which dtype torch normalises x: under autocast that differs between devices; None where unknown."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or device == "cpu" or x.dtype is torch.float64:
        return x.dtype
    return torch.float32 if device == "cuda" else None


class _MemoryNorm(MemorySaver):
    """Keeps the replay of its input, and notes how its output is computed again."""

    weight: Any
    bias: Any
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, dtype = self.weight, self.bias, _dtype_of(x)
        # timm's fast norms, off by default, run in another dtype under autocast, or by Apex.
        if (
            dtype is None
            or getattr(self, "_fast_norm", False)
            or not x.is_contiguous(memory_format=memory_format_of(x))
        ):
            return super().forward(x)
        if not self._applies(x, weight, bias):
            return super().forward(x)
        replay = replay_of(x) or self._keep(x)  # a convolution may run again, as it does for a BatchNorm
        if dtype is not x.dtype:
            replay = replay.then(as_type, (), dtype)
            x, weight, bias = x.to(dtype), *(None if t is None else t.to(dtype) for t in (weight, bias))
        over, eps = self._over(), self.eps
        y = Normalization.apply(x, weight, bias, replay, over, eps)
        given = [t for t in (weight, bias) if t is not None]
        note(y, replay.then(_normalized, given, weight is not None, over, eps))
        return y

    def _over(self) -> Any:
        raise NotImplementedError


class MemoryGroupNorm(_MemoryNorm, nn.GroupNorm):  # type: ignore[misc]
    """Replaces nn.GroupNorm."""

    def _over(self) -> int:
        return self.num_groups


class MemoryLayerNorm(_MemoryNorm, nn.LayerNorm):  # type: ignore[misc]
    """Replaces nn.LayerNorm."""

    _dims = range(2, 6)

    def _over(self) -> tuple[int, ...]:
        return tuple(self.normalized_shape)

    def _keep_value(self, x: Tensor, computed: bool) -> Replay:
        return keep(x)  # the axes are not those that 8 bits are made for


class MemoryChannelNorm(_MemoryNorm):
    """Is mixed into the LayerNorm2d of a library, which normalises each pixel of (N, C, H, W) over its channels."""

    def _over(self) -> str:
        return "channels"


class Linear(Function):
    """Multiplies by a learned weight, and keeps a replay of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, replay: Replay) -> Tensor:
        ctx.program = replay.program
        ctx.save_for_backward(weight, *replay.tensors)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        weight, *tensors = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        rows = grad.reshape(-1, grad.shape[-1])
        dweight = rows.T @ ctx.program.rebuild(tensors).reshape(-1, weight.shape[1]) if wants_weight else None
        dx = grad @ weight if wants_x else None
        return dx, dweight, rows.sum(0) if wants_bias else None, None


class MemoryLinear(MemorySaver, nn.Linear):
    """Replaces nn.Linear: keeps the replay of its input where there is one."""

    _dims = range(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if not weight.requires_grad or not self._ordinary(x, weight, bias):
            return super().forward(x)
        dtype = functional.autocast_dtype(x.device.type, x.dtype)
        if dtype is not None:
            x, weight, bias = cast(x, dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        replay = replay_of(x)
        if replay is None or replay.deep or replay.is_kept:  # torch keeps x, too
            return nn.functional.linear(x, weight, bias)
        return Linear.apply(x, weight, bias, replay)


# A step of replays: see the end of replay.py.
def _normalized(inputs: list[Tensor], tensors: Sequence[Tensor], weighted: bool, over: Any, eps: float) -> Tensor:
    weight, bias = tensors[0] if weighted else None, tensors[-1] if len(tensors) > weighted else None
    return _normalize(inputs[0], weight, bias, over, eps)[0]
