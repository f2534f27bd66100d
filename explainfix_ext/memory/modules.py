"""The drop-in modules: subclasses that a module's class is exchanged for, so that all else about it stays.

Parameters, buffers, state_dict keys, hooks, names and modes are the module's own. Each does what its plain class does
wherever it cannot do better: without gradients, under torch.compile or torch.func, for unusual arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext import functional
from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.ops import passes

from . import functions, replay
from .regions import watched
from .replay import Recipe, has_only_reader, keep, note, recipe_of
from .saver import MemorySaver

aten = torch.ops.aten


class _MemoryConvolution(MemorySaver):
    """For the gradient of a learned weight, the input's recipe is kept; for a frozen one, nothing."""

    # Of the plain class that this is mixed into.
    weight: Tensor
    bias: Tensor | None
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: Any
    padding_mode: str
    dilation: tuple[int, int]
    transposed: bool
    output_padding: tuple[int, int]
    groups: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight, bias = self.weight, self.bias
        plain = not (args or kwargs) and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not plain or not self._ordinary(x):
            return super().forward(x, *args, **kwargs)
        dtype = functional.autocast_dtype(x.device.type, x.dtype)
        if dtype is not None:
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        run = (self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups)
        kept, kept_run = self._kept_input(x, run) if weight.requires_grad else (recipe_of(x), run)
        y = functions.Convolution.apply(x, weight, bias, kept if weight.requires_grad else None, run, kept_run)
        if self._saving.reruns:
            if kept is None and not x.requires_grad:
                kept = keep(x)
            if kept is not None and not kept.deep:
                tensors = (weight,) if bias is None else (weight, bias)
                self._note_output(y, kept.then(_convolved, tensors, *kept_run, deep=True))
        return y

    def _kept_input(self, x: Tensor, run: tuple) -> tuple[Recipe, tuple]:
        """Of a 1x1 convolution with a stride, only the pixels that it reads; it then has stride 1."""
        stride, padding = run[:2]
        plain = recipe_of(x) is None and not self.transposed and max(self.kernel_size) == 1 and not any(padding)
        if not plain or max(stride) == 1:
            return self._keep(x), run
        read = x.detach()[:, :, :: stride[0], :: stride[1]].clone(memory_format=memory_format_of(x))
        return self._keep_value(read, x.requires_grad), ((1, 1), *run[1:])


class MemoryConv2d(_MemoryConvolution, nn.Conv2d):  # type: ignore[misc]
    """nn.Conv2d."""


class MemoryConvTranspose2d(_MemoryConvolution, nn.ConvTranspose2d):  # type: ignore[misc]
    """nn.ConvTranspose2d."""


def _convolved(inputs: list[Tensor], kept: Any, *geometry: Any) -> Tensor:
    weight, *bias = kept
    return aten.convolution(inputs[0], weight, bias[0] if bias else None, *geometry)


class MemoryFixedConv2d(MemorySaver, FixedConv2d):
    """FixedConv2d, which keeps no activation anyway: tells how its output is made again."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        plain = self.padding_mode == "zeros" and self.coeff is None and self.pointwise is None
        if not plain or not self._saving.reruns or not self._ordinary(x):
            return y
        kept = recipe_of(x) if x.requires_grad else keep(x)
        if kept is not None and not kept.deep:
            plan, bank = self._plan(), self._held.bank
            tensors = [bank.basis, bank.steering, *(t for t in (plan.packed, self.bias) if t is not None)]
            geometry = (self.stride, self.padding, self.dilation, self.groups, bank.scale, plan.code)
            here = (plan.packed is not None, self.bias is not None, y.dtype)
            self._note_output(y, kept.then(_fixed_convolved, tensors, *here, *geometry, deep=True))
        return y


def _fixed_convolved(
    inputs: list[Tensor], kept: Any, packed: bool, bias: bool, dtype: torch.dtype, *geometry: Any
) -> Tensor:
    basis, steering, *others = kept
    optional = (others.pop(0) if packed else None, others.pop(0).to(dtype) if bias else None)
    return functional.convolve(inputs[0].to(dtype), basis, steering, *optional, *geometry)


class MemoryBatchNorm2d(MemorySaver, nn.BatchNorm2d):
    """nn.BatchNorm2d: keeps the recipe of its input where there is one, and then writes into its memory if nothing else
    reads it."""

    def forward(self, x: Tensor) -> Tensor:
        return self._normalize(x) if self._applies(x, self.weight, self.bias) else super().forward(x)

    def _normalize(self, x: Tensor) -> Tensor:
        kept = recipe_of(x)
        overwrite = kept is not None and kept.deep and has_only_reader(x) and not watched(self)
        if kept is None:
            kept = self._keep_value(x, x.requires_grad)
        of_batch = self.training or self.running_mean is None
        with torch.no_grad():
            mean, var = self._batch_statistics(x) if of_batch else self._running()
            dtype = passes.statistics_dtype(x.dtype)
            mean, invstd = mean.to(dtype), torch.rsqrt(var.to(dtype) + self.eps)
            alpha = invstd if self.weight is None else self.weight * invstd
            beta = -mean * alpha if self.bias is None else self.bias - mean * alpha
        statistics = (mean, invstd, alpha, beta)
        y = functions.BatchNorm.apply(x, self.weight, self.bias, statistics, kept, of_batch, overwrite)
        note(y, replay.affine(kept, alpha, beta))
        return y

    def _running(self) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean, self.running_var

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the batch; the running ones move, as nn.BatchNorm2d's do."""
        count = x.numel() // x.shape[1]
        if count == 1 and self.training:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}")
        mean, var = passes.batch_stats(x.detach())
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            for running, now in zip(self._running(), (mean, var * (count / max(count - 1, 1))), strict=True):
                running.lerp_(now.to(running.dtype), share)
        return mean, var


class _MemoryActivation(MemorySaver):
    _act: str

    def forward(self, x: Tensor) -> Tensor:
        inplace = getattr(self, "inplace", False)
        act = "gelu_tanh" if getattr(self, "approximate", "none") == "tanh" else self._act
        if not self._applies(x) or (inplace and x.grad_fn is None):
            return super().forward(x)
        kept, slope = recipe_of(x), getattr(self, "negative_slope", 0.0)
        then = None if kept is None else replay.activated(kept, act, slope)
        bits = act in passes.MASKED
        if kept is not None and then is not None and not (bits and (kept.deep or kept.lossy)):
            y = functions.Activation.apply(x, act, slope, inplace, kept)
        elif bits:
            y = functions.MaskedActivation.apply(x, act, slope, inplace)
        else:
            return super().forward(x)
        note(y, then)
        return y


class MemoryReLU(_MemoryActivation, nn.ReLU):
    """nn.ReLU."""

    _act = "relu"


class MemoryReLU6(_MemoryActivation, nn.ReLU6):
    """nn.ReLU6."""

    _act = "relu6"


class MemoryLeakyReLU(_MemoryActivation, nn.LeakyReLU):
    """nn.LeakyReLU."""

    _act = "leaky_relu"


class MemorySiLU(_MemoryActivation, nn.SiLU):
    """nn.SiLU."""

    _act = "silu"


class MemoryHardswish(_MemoryActivation, nn.Hardswish):
    """nn.Hardswish."""

    _act = "hardswish"


class MemoryGELU(_MemoryActivation, nn.GELU):
    """nn.GELU."""

    _act = "gelu"


class MemoryMaxPool2d(MemorySaver, nn.MaxPool2d):
    """nn.MaxPool2d: keeps the place of each maximum in its window: a byte instead of eight."""

    def forward(self, x: Tensor) -> Tensor:
        size, stride, padding, dilation = map(
            functions.pair, (self.kernel_size, self.stride or self.kernel_size, self.padding, self.dilation)
        )
        if self.return_indices or not self._applies(x) or dilation != (1, 1) or size[0] * size[1] > 256:
            return super().forward(x)
        y = functions.MaxPool.apply(x, (size, stride, padding), self.ceil_mode)
        kept = recipe_of(x)
        # Without reruns nobody gains from y's recipe: to keep y costs less than to pool again.
        if self._saving.reruns and kept is not None and not kept.deep:
            note(y, kept.then(replay.pooled, (), size, stride, padding, dilation, self.ceil_mode))
        return y


class MemoryAvgPool2d(MemorySaver, nn.AvgPool2d):
    """nn.AvgPool2d: keeps the shape of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._applies(x):
            return super().forward(x)
        size, stride, padding = map(functions.pair, (self.kernel_size, self.stride, self.padding))
        geometry = (size, stride, padding, self.ceil_mode, self.count_include_pad, self.divisor_override)
        return functions.AvgPool.apply(x, geometry)


class MemoryDropout(MemorySaver, nn.Dropout):
    """nn.Dropout: keeps a bit for each element."""

    def forward(self, x: Tensor) -> Tensor:
        ordinary = self.training and 0 < self.p <= 1 and not (self.inplace and x.grad_fn is None)
        if not ordinary or not self._applies(x):
            return super().forward(x)
        return functions.Dropout.apply(x, self.p, self.inplace)


# Plain class -> drop-in class. By exact class: a subclass may do anything.
DROP_IN: dict[type, type] = {
    nn.Conv2d: MemoryConv2d,
    nn.ConvTranspose2d: MemoryConvTranspose2d,
    FixedConv2d: MemoryFixedConv2d,
    nn.BatchNorm2d: MemoryBatchNorm2d,
    nn.ReLU: MemoryReLU,
    nn.ReLU6: MemoryReLU6,
    nn.LeakyReLU: MemoryLeakyReLU,
    nn.SiLU: MemorySiLU,
    nn.Hardswish: MemoryHardswish,
    nn.GELU: MemoryGELU,
    nn.MaxPool2d: MemoryMaxPool2d,
    nn.AvgPool2d: MemoryAvgPool2d,
    nn.Dropout: MemoryDropout,
}
