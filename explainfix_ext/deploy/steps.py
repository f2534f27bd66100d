"""The modules that `optimize_for_inference` puts into a network: convolutions with what follows them.

Each computes act(convolution * scale + bias + residual). They have no gradient and no training mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext._support.layout import same_padding
from explainfix_ext.functional import operators_of, parts_of
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.nn.fixed_conv2d_same import pads_like_tensorflow
from explainfix_ext.ops import inference
from explainfix_ext.ops.passes import ACTIVATIONS


@dataclass(frozen=True)
class Activation:
    """Names a function of `ACTIVATIONS`; `slope` is that of leaky_relu."""

    name: str = "identity"
    slope: float = 0.0


@dataclass(frozen=True)
class Affine:
    """Holds a BatchNorm in eval mode as a scale and a bias for each channel."""

    scale: Tensor
    bias: Tensor

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> Affine:
        """Computes them in float64, in which nothing is lost when they are multiplied into a weight."""
        mean, var = _double(norm.running_mean), _double(norm.running_var)
        scale = torch.rsqrt(var + norm.eps) * (1.0 if norm.weight is None else _double(norm.weight))
        return cls(scale, (0.0 if norm.bias is None else _double(norm.bias)) - mean * scale)


class Step(nn.Module):
    """Is the base of the steps: it holds the numbers of what follows a convolution."""

    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, scale: Tensor | None, bias: Tensor | None, activation: Activation) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.activation = activation
        self._act = ACTIVATIONS[activation.name], activation.slope

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        if self.scale is None and self.bias is None and residual is None and self._act[0] == 0:
            return y
        return inference.finish_conv(y, self.scale, self.bias, residual, *self._act)

    def extra_repr(self) -> str:
        return f"activation={self.activation.name}"


class PointwiseStep(Step):
    """Convolves by learned 1x1 filters, the BatchNorm's scale multiplied into them."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, activation: Activation) -> None:
        super().__init__(None, bias, activation)
        self.register_buffer("weight", weight)
        self.stride = stride

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return inference.pointwise_conv2d(x, self.weight, self.bias, residual, self.stride, *self._act)


class LearnedStep(Step):
    """Convolves by learned filters of any size, the BatchNorm's scale multiplied into them; torch runs it."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, activation: Activation) -> None:
        super().__init__(None, None, activation)
        self.register_buffer("weight", weight)
        self.register_buffer("conv_bias", bias)
        self.pad = _Padding(conv)
        self.geometry: tuple[Any, ...] = (conv.stride, self.pad.inside, conv.dilation, conv.groups)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._finish(F.conv2d(self.pad(x), self.weight, self.conv_bias, *self.geometry), residual)


class FixedStep(Step):
    """Convolves by fixed filters, whose kernel is that of the layer; scale and bias are applied to its result."""

    def __init__(
        self, conv: FixedConv2d, scale: Tensor | None, bias: Tensor | None, activation: Activation
    ) -> None:
        super().__init__(scale, bias, activation)
        self.held = conv._held
        self.pad = _Padding(conv)
        self.geometry = (conv.stride, self.pad.inside, conv.dilation, conv.groups)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        bank = self.held.bank
        plan = self.held.plan(x.dtype, False)
        _, parts, numbers = parts_of(bank, plan)
        y = operators_of(bank).conv_values(self.pad(x), *parts, plan.packed, None, *self.geometry, *numbers)
        return self._finish(y, residual)


class MaxPoolStep(nn.Module):
    """Pools as the nn.MaxPool2d that it is made of."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        stride = pool.kernel_size if pool.stride is None else pool.stride
        self.windows = (_pair(pool.kernel_size), _pair(stride), _pair(pool.padding), pool.ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        return inference.max_pool_values(x, *self.windows)


class _Padding:
    """Pads what a convolution's operator cannot: any mode but zeros, and TensorFlow's "same".

    Attributes:
        inside: the padding that is left to the operator.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._same = (conv.kernel_size, conv.stride, conv.dilation) if pads_like_tensorflow(conv) else None
        self._around, self._mode = None, conv.padding_mode
        sides = tuple(conv._reversed_padding_repeated_twice)
        symmetric = sides[0::2] == sides[1::2]
        self.inside = (sides[2], sides[0])
        if conv.padding_mode != "zeros" or not symmetric:
            self._around, self.inside = sides, (0, 0)
            self._mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode

    def __call__(self, x: Tensor) -> Tensor:
        if self._same is not None:
            return F.pad(x, same_padding((x.shape[-2], x.shape[-1]), *self._same))
        return x if self._around is None else F.pad(x, self._around, mode=self._mode)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _double(t: Tensor | None) -> Tensor:
    assert t is not None
    return t.detach().double()
