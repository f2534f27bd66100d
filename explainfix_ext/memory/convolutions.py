"""Defines the drop-ins for convolutions, learned and fixed, which save.py puts in place of a module's class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext import functional
from explainfix_ext._support.layout import as_pair, as_picture, memory_format_of
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.fixed_conv1d import FixedConv1d
from explainfix_ext.nn.fixed_conv2d import FixedConv2d

from . import functions
from .functions import ConvGeometry
from .notes import cast, note, replay_of
from .replay import Replay, keep
from .saver import MemorySaver

aten = torch.ops.aten
_POINTWISE = {n: ConvGeometry((1,) * n, (0,) * n, (1,) * n, False, (0,) * n, 1) for n in (1, 2)}  # by number of axes


class _Convolving(MemorySaver):
    """Runs a convolution whose weight may be learned, and notes how its output is computed again."""

    def _convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        replay: Replay | None,
        geometry: ConvGeometry,
        replay_geometry: ConvGeometry,
    ) -> Tensor:
        """Convolves x, whose replay is given if there is one; the other arguments are functions.Convolution's."""
        kept = replay if weight.requires_grad else None
        y = functions.Convolution.apply(x, weight, bias, kept, geometry, replay_geometry)
        if self._saving.reruns:
            if replay is None and not x.requires_grad:
                replay = keep(x)
            if replay is not None and not replay.deep:
                tensors = (weight,) if bias is None else (weight, bias)
                note(y, replay.then(_convolved, tensors, *replay_geometry, deep=True))
        return y


class _MemoryConvolution(_Convolving):
    """Keeps the replay of its input for the gradient of a learned weight; for a frozen one, nothing."""

    # Attributes of the plain class that this is mixed into.
    weight: Tensor
    bias: Tensor | None
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    padding_mode: str
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
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
            x, weight, bias = cast(x, dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        geometry = ConvGeometry(
            self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        )
        replay, replay_geometry = self._keep_input(x, geometry) if learned else (replay_of(x), geometry)
        return self._convolve(x, weight, bias, replay, geometry, replay_geometry)

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
        every = tuple(slice(None, None, step) for step in geometry.stride)
        read = x.detach()[(slice(None), slice(None), *every)].clone(memory_format=memory_format_of(x))
        return self._keep_value(read, x.requires_grad), geometry._replace(stride=(1,) * len(every))


class MemoryConv2d(_MemoryConvolution, nn.Conv2d):  # type: ignore[misc]
    """Replaces nn.Conv2d."""


class MemoryConv1d(_MemoryConvolution, nn.Conv1d):  # type: ignore[misc]
    """Replaces nn.Conv1d."""

    _dims = (3,)


class MemoryConv3d(_MemoryConvolution, nn.Conv3d):  # type: ignore[misc]
    """Replaces nn.Conv3d."""

    _dims = (5,)


class MemoryConvTranspose2d(_MemoryConvolution, nn.ConvTranspose2d):  # type: ignore[misc]
    """Replaces nn.ConvTranspose2d."""


# Steps of replays: see the end of replay.py.
def _convolved(inputs: list[Tensor], tensors: Sequence[Tensor], *geometry: Any) -> Tensor:
    weight, *bias = tensors
    return aten.convolution(inputs[0], weight, bias[0] if bias else None, *geometry)


class _MemoryFixedConv(_Convolving, FixedConv):
    """Keeps no activation, as a fixed layer does anyway, and notes how its output is computed again.

    A learned 1x1 after the filters wants their output for its gradient: where convolutions may run again, the filters
    do, on what is kept anyway.
    """

    def forward(self, x: Tensor) -> Tensor:
        pointwise, bias = self.pointwise, self.bias
        known = self.padding_mode == "zeros" and self.coeff is None and self._saving.reruns
        if not known or not self._ordinary(x, bias, pointwise, *self._held.bank.tensors):
            return super().forward(x)
        first = bias if pointwise is None else None
        z = self._filtered(x, first)
        self._note_filters(x, z, first)
        if pointwise is None:
            return z
        dtype = functional.autocast_dtype(z.device.type, z.dtype)
        weight: Tensor = pointwise
        if dtype is not None:
            z, weight, bias = z.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        replay = replay_of(z)
        if replay is None and weight.requires_grad:
            replay = self._keep(z)
        geometry = _POINTWISE[len(self.kernel_size)]
        return self._convolve(z, weight, bias, replay, geometry, geometry)

    def _note_filters(self, x: Tensor, y: Tensor, bias: Tensor | None) -> None:
        """Notes on y, which the filters made of x, how they make it again."""
        # An input image is there anyway, so keep(x) costs nothing. Where x's replay is deep, y gets no note: BatchNorm
        # then keeps y itself, which ends the chain of reruns.
        replay = replay_of(x) if x.requires_grad else keep(x)
        if replay is None or replay.deep:
            return
        plan = self._plan()
        convolve, parts, numbers = functional.parts_of(self._held.bank, plan)
        tensors = [*parts, *(t for t in (plan.packed, bias) if t is not None)]
        padding = self.padding if isinstance(self.padding, str) else as_pair(self.padding, 0)
        geometry = (as_pair(self.stride), padding, as_pair(self.dilation), self.groups, *numbers)
        present = (len(parts), plan.packed is not None, bias is not None, y.dtype)
        note(y, replay.then(_fixed_convolved, tensors, convolve, *present, *geometry, deep=True))


def _fixed_convolved(
    inputs: list[Tensor], tensors: Sequence[Tensor], convolve: Callable[..., Tensor], parts: int, packed: bool,
    bias: bool, dtype: torch.dtype, *geometry: Any,
) -> Tensor:  # fmt: skip
    others = list(tensors[parts:])
    optional = (others.pop(0) if packed else None, others.pop(0).to(dtype) if bias else None)
    y = convolve(as_picture(inputs[0].to(dtype)), *tensors[:parts], *optional, *geometry)
    return y if inputs[0].ndim == 4 else y.squeeze(2)


class MemoryFixedConv1d(_MemoryFixedConv, FixedConv1d):
    """Replaces FixedConv1d."""

    _dims = (3,)


class MemoryFixedConv2d(_MemoryFixedConv, FixedConv2d):
    """Replaces FixedConv2d."""
