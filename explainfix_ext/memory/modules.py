"""Defines the drop-ins for modules other than convolutions, and DROP_IN: which class save.py puts in place of which.

Parameters, buffers, state_dict keys, hooks, names and modes are the module's own. Each does what its plain class does
wherever it cannot do better: without gradients, under torch.compile or torch.func, for unusual arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from explainfix_ext._support.layout import as_pair
from explainfix_ext.nn.fixed_conv1d import FixedConv1d
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.ops import passes

from . import functions
from .convolutions import (
    MemoryConv1d,
    MemoryConv2d,
    MemoryConv3d,
    MemoryConvTranspose2d,
    MemoryFixedConv1d,
    MemoryFixedConv2d,
)
from .norms import MemoryGroupNorm, MemoryLayerNorm, MemoryLinear
from .notes import Handover, handover_of, note, replay_of
from .ranks import Ranks, ranks_of
from .replay import activated, affine, keep, pooled
from .saver import MemorySaver, Saving  # noqa: F401  Models pickled with an older version look for Saving here

aten = torch.ops.aten


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


class _MemoryBatchNorm(MemorySaver, _BatchNorm):
    """Keeps the replay of its input where there is one."""

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
        ranks = self._ranks() if self.training else None
        factors = self._factors(x.detach(), of_batch, ranks, *parameters, mean, var)
        y = functions.BatchNorm.apply(x, weight, bias, factors, replay, of_batch, handover, ranks)
        note(y, affine(replay, factors), handover=handover)
        return y

    def _ranks(self) -> Ranks | None:
        """Returns the processes whose batches are normalised together with this one's, if there are any."""
        return None

    def _factors(self, x: Tensor, of_batch: bool, ranks: Ranks | None, *numbers: Tensor | None) -> Tensor:
        """Computes the factors, and where torch's BatchNorm does so moves the running statistics.

        Args:
            numbers: weight, bias, running mean and variance.
        """
        dtype = passes.statistics_dtype(x.dtype)
        weight, bias, mean, var = [t if t is None or t.dtype is dtype else t.to(dtype) for t in numbers]
        if not of_batch:
            assert mean is not None
            assert var is not None
            return passes.factors_of(mean, var, weight, bias, self.eps)
        factors_of_batch = passes.batch_norm_factors if ranks is None else ranks.batch_norm_factors
        if self.training and ranks is None and x.numel() == x.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}")
        tracked = self.num_batches_tracked
        if not self.training or not self.track_running_stats or tracked is None:
            return factors_of_batch(x, weight, bias, None, None, 0.0, self.eps)
        tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(tracked)
        factors = factors_of_batch(x, weight, bias, mean, var, share, self.eps)
        for held, moved in ((self.running_mean, mean), (self.running_var, var)) if mean is not numbers[2] else ():
            held.copy_(moved)  # type: ignore[union-attr, arg-type]
        return factors


class MemoryBatchNorm1d(_MemoryBatchNorm, nn.BatchNorm1d):
    """Replaces nn.BatchNorm1d."""

    _dims = (2, 3)


class MemoryBatchNorm2d(_MemoryBatchNorm, nn.BatchNorm2d):
    """Replaces nn.BatchNorm2d."""


class MemoryBatchNorm3d(_MemoryBatchNorm, nn.BatchNorm3d):
    """Replaces nn.BatchNorm3d."""

    _dims = (5,)


class MemorySyncBatchNorm(_MemoryBatchNorm, nn.SyncBatchNorm):
    """Replaces nn.SyncBatchNorm. It takes tensors of a CPU, too, which torch's refuses."""

    _dims = range(2, 6)

    def _ranks(self) -> Ranks | None:
        return ranks_of(self.process_group)


class MemoryActivation(MemorySaver):
    """Rebuilds its input by the replay; ReLU and its kin keep a bit for each element where that is deep or missing."""

    _act: str
    _dims = range(2, 6)
    # What a plain class has no attribute for.
    inplace, approximate, negative_slope = False, "none", 0.0

    def forward(self, x: Tensor) -> Tensor:
        inplace, slope = self.inplace, self.negative_slope
        act = "gelu_tanh" if self.approximate == "tanh" else self._act
        if not self._applies(x) or (inplace and x.grad_fn is None):
            return super().forward(x)
        replay = replay_of(x)
        bits = act in passes.MASKED
        if bits and replay is None and x.ndim != 4:  # a Linear or Conv3d after it keeps its output, as torch does
            return super().forward(x)
        result = None if replay is None else activated(replay, act, slope)
        # A bit is better than a replay that costs a convolution, or that could be on the wrong side of 0.
        normalized = replay is not None and replay.is_affine
        if normalized and result is not None and not (bits and (result.deep or result.lossy)):
            y = functions.Activation.apply(x, act, slope, inplace, result, handover_of(x))
        elif bits:
            y = functions.MaskedActivation.apply(x, act, slope, inplace)
        elif replay is not None and result is not None:
            y = functions.RebuiltActivation.apply(x, act, slope, inplace, replay)
        else:  # torch keeps x, of which the next layer's input is made again
            y = super().forward(x)
            result = None if inplace else activated(keep(x), act, slope)
        note(y, result)
        return y


class MemoryReLU(MemoryActivation, nn.ReLU):
    """Replaces nn.ReLU."""

    _act = "relu"


class MemoryReLU6(MemoryActivation, nn.ReLU6):
    """Replaces nn.ReLU6."""

    _act = "relu6"


class MemoryLeakyReLU(MemoryActivation, nn.LeakyReLU):
    """Replaces nn.LeakyReLU."""

    _act = "leaky_relu"


class MemorySiLU(MemoryActivation, nn.SiLU):
    """Replaces nn.SiLU."""

    _act = "silu"


class MemoryHardswish(MemoryActivation, nn.Hardswish):
    """Replaces nn.Hardswish."""

    _act = "hardswish"


class MemoryGELU(MemoryActivation, nn.GELU):
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


class MemoryMaxPool1d(MemorySaver, nn.MaxPool1d):
    """Replaces nn.MaxPool1d, as MemoryMaxPool2d does nn.MaxPool2d."""

    _dims = (3,)

    def forward(self, x: Tensor) -> Tensor:
        size, stride, dilation = map(as_pair, (self.kernel_size, self.stride or self.kernel_size, self.dilation))
        if self.return_indices or not self._applies(x) or dilation != (1, 1) or size[1] > 256:
            return super().forward(x)
        windows = (size, stride, as_pair(self.padding, 0))
        return functions.MaxPool.apply(x.unsqueeze(2), windows, self.ceil_mode).squeeze(2)


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

    _dims = range(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        ordinary = self.training and 0 < self.p <= 1 and not (self.inplace and x.grad_fn is None)
        if not ordinary or not self._applies(x):
            return super().forward(x)
        return functions.Dropout.apply(x, self.p, self.inplace)


# Plain class -> drop-in. A module is looked up by its exact class, because a subclass may compute anything.
DROP_IN: dict[type[nn.Module], type[MemorySaver]] = {
    nn.Conv1d: MemoryConv1d,
    nn.Conv2d: MemoryConv2d,
    nn.Conv3d: MemoryConv3d,
    nn.ConvTranspose2d: MemoryConvTranspose2d,
    FixedConv1d: MemoryFixedConv1d,
    FixedConv2d: MemoryFixedConv2d,
    nn.BatchNorm1d: MemoryBatchNorm1d,
    nn.BatchNorm2d: MemoryBatchNorm2d,
    nn.BatchNorm3d: MemoryBatchNorm3d,
    nn.SyncBatchNorm: MemorySyncBatchNorm,
    nn.GroupNorm: MemoryGroupNorm,
    nn.LayerNorm: MemoryLayerNorm,
    nn.Linear: MemoryLinear,
    nn.ReLU: MemoryReLU,
    nn.ReLU6: MemoryReLU6,
    nn.LeakyReLU: MemoryLeakyReLU,
    nn.SiLU: MemorySiLU,
    nn.Hardswish: MemoryHardswish,
    nn.GELU: MemoryGELU,
    nn.MaxPool1d: MemoryMaxPool1d,
    nn.MaxPool2d: MemoryMaxPool2d,
    nn.AvgPool2d: MemoryAvgPool2d,
    nn.Dropout: MemoryDropout,
}
