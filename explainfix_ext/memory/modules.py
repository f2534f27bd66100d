"""Defines the drop-ins for torch's modules and for FixedConv2d, which save.py puts in place of a module's class.

Parameters, buffers, state_dict keys, hooks, names and modes are the module's own. Each does what its plain class does
wherever it cannot do better: without gradients, under torch.compile or torch.func, for unusual arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext import functional
from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.ops import passes

from . import functions
from .functions import ConvGeometry
from .notes import Handover, handover_of, note, replay_of
from .replay import Replay, activated, affine, keep, pooled
from .saver import MemorySaver, Saving  # noqa: F401  Models pickled with an older version look for Saving here

aten = torch.ops.aten


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class _MemoryConvolution(MemorySaver):
    """Keeps the replay of its input for the gradient of a learned weight; for a frozen one, nothing."""

    # Attributes of the plain class that this is mixed into.
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
        if not plain or not self._ordinary(x, weight, bias):
            return super().forward(x, *args, **kwargs)
        dtype = functional.autocast_dtype(x.device.type, x.dtype)
        learned = weight.requires_grad
        if learned and self._saving.mode == "exact" and (dtype is None or dtype is x.dtype) and self._must_keep(x):
            self._keep(x)  # as torch's own function does
            return super().forward(x)
        if dtype is not None:
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        geometry = ConvGeometry(
            self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        )
        replay, replay_geometry = self._keep_input(x, geometry) if learned else (replay_of(x), geometry)
        y = functions.Convolution.apply(x, weight, bias, replay if learned else None, geometry, replay_geometry)
        if self._saving.reruns:
            if replay is None and not x.requires_grad:
                replay = keep(x)
            if replay is not None and not replay.deep:
                tensors = (weight,) if bias is None else (weight, bias)
                note(y, replay.then(_convolved, tensors, *replay_geometry, deep=True))
        return y

    def _must_keep(self, x: Tensor) -> bool:
        """Says whether the weight's gradient reads all of x, which nothing but x itself gives."""
        reads_all = self.transposed or max(self.kernel_size) > 1 or any(self.padding) or max(self.stride) == 1
        replay = replay_of(x)
        return reads_all and (replay is None or replay.is_kept)

    def _keep_input(self, x: Tensor, geometry: ConvGeometry) -> tuple[Replay, ConvGeometry]:
        """Returns the replay of what the weight's gradient needs of x, and the convolution's geometry on that.

        A 1x1 convolution with a stride reads some pixels only. These alone are kept; on them the stride is 1.
        """
        if self._must_keep(x) or replay_of(x) is not None:
            return self._keep(x), geometry
        rows, columns = geometry.stride
        read = x.detach()[:, :, ::rows, ::columns].clone(memory_format=memory_format_of(x))
        return self._keep_value(read, x.requires_grad), geometry._replace(stride=(1, 1))


class MemoryConv2d(_MemoryConvolution, nn.Conv2d):  # type: ignore[misc]
    """Replaces nn.Conv2d."""


class MemoryConvTranspose2d(_MemoryConvolution, nn.ConvTranspose2d):  # type: ignore[misc]
    """Replaces nn.ConvTranspose2d."""


# Steps of replays: see the end of replay.py.
def _convolved(inputs: list[Tensor], tensors: Sequence[Tensor], *geometry: Any) -> Tensor:
    weight, *bias = tensors
    return aten.convolution(inputs[0], weight, bias[0] if bias else None, *geometry)


class MemoryFixedConv2d(MemorySaver, FixedConv2d):
    """Replaces FixedConv2d, which keeps no activation anyway, and notes how its output is computed again."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self._saving.reruns:
            return y
        plain = self.padding_mode == "zeros" and self.coeff is None and self.pointwise is None
        bank = self._held.bank
        if not plain or not self._ordinary(x, self.bias, *bank.tensors):
            return y
        # An input image is there anyway, so keep(x) costs nothing. Where x's replay is deep, y gets no note: BatchNorm
        # then keeps y itself, which ends the chain of reruns.
        replay = replay_of(x) if x.requires_grad else keep(x)
        if replay is not None and not replay.deep:
            plan = self._plan()
            convolve, parts, numbers = functional.parts_of(bank, plan)
            tensors = [*parts, *(t for t in (plan.packed, self.bias) if t is not None)]
            geometry = (self.stride, self.padding, self.dilation, self.groups, *numbers)
            present = (len(parts), plan.packed is not None, self.bias is not None, y.dtype)
            note(y, replay.then(_fixed_convolved, tensors, convolve, *present, *geometry, deep=True))
        return y


def _fixed_convolved(
    inputs: list[Tensor], tensors: Sequence[Tensor], convolve: Callable[..., Tensor], parts: int, packed: bool,
    bias: bool, dtype: torch.dtype, *geometry: Any,
) -> Tensor:  # fmt: skip
    others = list(tensors[parts:])
    optional = (others.pop(0) if packed else None, others.pop(0).to(dtype) if bias else None)
    return convolve(inputs[0].to(dtype), *tensors[:parts], *optional, *geometry)


class MemoryBatchNorm2d(MemorySaver, nn.BatchNorm2d):
    """Replaces nn.BatchNorm2d: keeps the replay of its input where there is one."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias  # once each: a Module takes a while to find them
        return self._normalize(x, weight, bias) if self._applies(x, weight, bias) else super().forward(x)

    def _normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        replay, handover = replay_of(x), None
        if replay is None:
            replay = self._keep_value(x, x.requires_grad)
        elif replay.deep:
            handover = Handover()
        mean, var = self.running_mean, self.running_var
        of_batch = self.training or mean is None
        parameters = (None if t is None else t.detach() for t in (weight, bias))
        factors = self._factors(x.detach(), of_batch, *parameters, mean, var)
        y = functions.BatchNorm.apply(x, weight, bias, factors, replay, of_batch, handover)
        note(y, affine(replay, factors), handover=handover)
        return y

    def _factors(self, x: Tensor, of_batch: bool, *numbers: Tensor | None) -> Tensor:
        """Computes the factors, and where nn.BatchNorm2d does so moves the running statistics.

        Args:
            numbers: weight, bias, running mean and variance.
        """
        dtype = passes.statistics_dtype(x.dtype)
        weight, bias, mean, var = [t if t is None or t.dtype is dtype else t.to(dtype) for t in numbers]
        if not of_batch:
            assert mean is not None
            assert var is not None
            return passes.factors_of(mean, var, weight, bias, self.eps)
        if self.training and x.numel() == x.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}")
        tracked = self.num_batches_tracked
        if not self.training or not self.track_running_stats or tracked is None:
            return passes.batch_norm_factors(x, weight, bias, None, None, 0.0, self.eps)
        tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(tracked)
        factors = passes.batch_norm_factors(x, weight, bias, mean, var, share, self.eps)
        for held, moved in ((self.running_mean, mean), (self.running_var, var)) if mean is not numbers[2] else ():
            held.copy_(moved)  # type: ignore[union-attr, arg-type]
        return factors


class _MemoryActivation(MemorySaver):
    """Rebuilds its input by the replay; ReLU and its kin keep a bit for each element where that is deep or missing."""

    _act: str
    # What a plain class has no attribute for.
    inplace, approximate, negative_slope = False, "none", 0.0

    def forward(self, x: Tensor) -> Tensor:
        inplace, slope = self.inplace, self.negative_slope
        act = "gelu_tanh" if self.approximate == "tanh" else self._act
        if not self._applies(x) or (inplace and x.grad_fn is None):
            return super().forward(x)
        replay = replay_of(x)
        result = None if replay is None else activated(replay, act, slope)
        bits = act in passes.MASKED
        # A bit is better than a replay that costs a convolution, or that could be on the wrong side of 0.
        if result is not None and not (bits and (result.deep or result.lossy)):
            y = functions.Activation.apply(x, act, slope, inplace, result, handover_of(x))
        elif bits:
            y = functions.MaskedActivation.apply(x, act, slope, inplace)
        else:
            return super().forward(x)
        note(y, result)
        return y


class MemoryReLU(_MemoryActivation, nn.ReLU):
    """Replaces nn.ReLU."""

    _act = "relu"


class MemoryReLU6(_MemoryActivation, nn.ReLU6):
    """Replaces nn.ReLU6."""

    _act = "relu6"


class MemoryLeakyReLU(_MemoryActivation, nn.LeakyReLU):
    """Replaces nn.LeakyReLU."""

    _act = "leaky_relu"


class MemorySiLU(_MemoryActivation, nn.SiLU):
    """Replaces nn.SiLU."""

    _act = "silu"


class MemoryHardswish(_MemoryActivation, nn.Hardswish):
    """Replaces nn.Hardswish."""

    _act = "hardswish"


class MemoryGELU(_MemoryActivation, nn.GELU):
    """Replaces nn.GELU."""

    _act = "gelu"


class MemoryMaxPool2d(MemorySaver, nn.MaxPool2d):
    """Replaces nn.MaxPool2d: keeps the place of each maximum in its window, a byte instead of eight."""

    def forward(self, x: Tensor) -> Tensor:
        size, stride, padding, dilation = map(
            _pair, (self.kernel_size, self.stride or self.kernel_size, self.padding, self.dilation)
        )
        if self.return_indices or not self._applies(x) or dilation != (1, 1) or size[0] * size[1] > 256:
            return super().forward(x)
        y = functions.MaxPool.apply(x, (size, stride, padding), self.ceil_mode)
        replay = replay_of(x)
        # Without reruns nobody gains from y's replay: to keep y costs less than to pool again.
        if self._saving.reruns and replay is not None and not replay.deep:
            note(y, replay.then(pooled, (), size, stride, padding, dilation, self.ceil_mode))
        return y


class MemoryAvgPool2d(MemorySaver, nn.AvgPool2d):
    """Replaces nn.AvgPool2d: keeps the shape of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._applies(x):
            return super().forward(x)
        size, stride, padding = map(_pair, (self.kernel_size, self.stride, self.padding))
        geometry = (size, stride, padding, self.ceil_mode, self.count_include_pad, self.divisor_override)
        return functions.AvgPool.apply(x, geometry)


class MemoryDropout(MemorySaver, nn.Dropout):
    """Replaces nn.Dropout: keeps a bit for each element."""

    def forward(self, x: Tensor) -> Tensor:
        ordinary = self.training and 0 < self.p <= 1 and not (self.inplace and x.grad_fn is None)
        if not ordinary or not self._applies(x):
            return super().forward(x)
        return functions.Dropout.apply(x, self.p, self.inplace)


# Plain class -> drop-in. A module is looked up by its exact class, because a subclass may compute anything.
DROP_IN: dict[type[nn.Module], type[MemorySaver]] = {
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
