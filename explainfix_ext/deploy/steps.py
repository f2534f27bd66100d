"""This module holds what an optimised network consists of: convolutions together with what follows them, and pooling.

A step of a convolution computes act(conv(x) * scale + bias + residual). Steps have no gradient and no training mode;
their numbers are buffers. Which step is made of which layer, alternatives.py says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext._support.layout import same_padding
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.functional import operators_of, parts_of
from explainfix_ext.nn.fixed_conv2d_same import pads_like_tensorflow
from explainfix_ext.ops import inference
from explainfix_ext.ops.passes import ACTIVATIONS
from explainfix_ext.ops.plans.plan import make_plan


@dataclass(frozen=True)
class Activation:
    """Names a function of `ACTIVATIONS`; `slope` is that of leaky_relu."""

    name: str = "identity"
    slope: float = 0.0


class Step(nn.Module):
    """Is the base of the steps of convolutions: it holds what follows the convolution."""

    bias: Tensor | None

    def __init__(self, bias: Tensor | None, activation: Activation) -> None:
        super().__init__()
        self.register_buffer("bias", bias)
        self.activation = activation
        self._act = ACTIVATIONS[activation.name], activation.slope

    def describe(self) -> str:
        """Says in a few words what runs."""
        raise NotImplementedError


class PointwiseStep(Step):
    """Runs a learned 1x1 convolution, with all that follows it, in one sweep over the activation."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, activation: Activation) -> None:
        super().__init__(bias, activation)
        self.register_buffer("weight", weight.flatten(1).contiguous())
        self.stride = stride

    def forward(self, x: Tensor, residual: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        return inference.pointwise_conv2d(x, self.weight, self.bias, residual, gate, self.stride, *self._act)

    def describe(self) -> str:
        return "1x1 kernel"


class DepthwiseStep(Step):
    """Runs a depthwise convolution, learned or fixed, with all that follows it."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, activation: Activation) -> None:
        super().__init__(bias, activation)
        self.register_buffer("weight", weight[:, 0].contiguous())
        self.pad, self.stride = Padding(conv), conv.stride[0]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x, padding = self.pad(x), self.pad.inside
        return inference.depthwise_conv2d(x, self.weight, self.bias, residual, self.stride, padding, *self._act)

    def describe(self) -> str:
        return "depthwise kernel"


class DenseStep(Step):
    """Runs any convolution by torch, and finishes its result in place."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, activation: Activation) -> None:
        super().__init__(bias, activation)
        self.register_buffer("weight", weight)
        self.pad = Padding(conv)
        groups = conv.in_channels // weight.shape[1]
        self.geometry: tuple[Any, ...] = (conv.stride, self.pad.inside, conv.dilation, groups)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = F.conv2d(self.pad(x), self.weight, self.bias, *self.geometry)
        if residual is not None or self._act[0]:
            inference.finish_conv(y, None, None, residual, *self._act)
        return y

    def describe(self) -> str:
        return "torch's convolution"


class FixedStep(Step):
    """Runs a fixed convolution by one of its kernels, and finishes its result in place.

    Args:
        bank, conv: the filters, and a layer with their geometry.
        scale: for each output, or None.
        plan: the kernel's name in PLANS. The bank is packed for it here, and again where the step is loaded.
    """

    scale: Tensor | None

    def __init__(
        self, bank: FilterBank, conv: nn.Conv2d, scale: Tensor | None, bias: Tensor | None, activation: Activation,
        plan: str,
    ) -> None:  # fmt: skip
        super().__init__(bias, activation)
        self.register_buffer("scale", scale)
        self.pad = Padding(conv)
        self.bank, self.plan, self.geometry = bank, plan, (conv.stride, self.pad.inside, conv.dilation, conv.groups)
        self._pack()

    def _pack(self) -> None:
        stride, _, dilation, groups = self.geometry
        chosen = make_plan(
            self.bank, torch.float32, stride=stride, dilation=dilation, groups=groups, force=self.plan
        )
        _, parts, numbers = parts_of(self.bank, chosen)
        self.runs = chosen.name
        self._call = (operators_of(self.bank).conv, (*parts, chosen.packed, None, *self.geometry, *numbers))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_call", "runs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pack()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        op, arguments = self._call
        y = op(self.pad(x), *arguments)
        if residual is not None or self._act[0] or self.scale is not None or self.bias is not None:
            inference.finish_conv(y, self.scale, self.bias, residual, *self._act)
        return y

    def describe(self) -> str:
        return f"{self.runs} kernel"


class Filtered(nn.Module):
    """Runs the fixed filters of a layer, and then its learned 1x1."""

    def __init__(self, filters: Step, mix: Step) -> None:
        super().__init__()
        self.filters, self.mix = filters, mix

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.mix(self.filters(x), residual)

    def describe(self) -> str:
        return f"{self.filters.describe()}, {self.mix.describe()}"


class MaxPoolStep(nn.Module):
    """Pools as the nn.MaxPool2d that it is made of."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        stride = pool.kernel_size if pool.stride is None else pool.stride
        self.windows = (_pair(pool.kernel_size), _pair(stride), _pair(pool.padding), pool.ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        return inference.max_pool_values(x, *self.windows)


class MeanStep(nn.Module):
    """Averages each plane, as nn.AdaptiveAvgPool2d(1) does."""

    def forward(self, x: Tensor) -> Tensor:
        return inference.mean_planes(x)


class Padding:
    """Pads what a convolution's operator cannot: any mode but zeros, and sides that differ.

    Attributes:
        inside: the padding that is left to the operator.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._same = (conv.kernel_size, conv.stride, conv.dilation) if pads_like_tensorflow(conv) else None
        sides: Any = tuple(conv._reversed_padding_repeated_twice)
        self.inside = (sides[2], sides[0])
        self._around: Any = None
        self._mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        if self._mode != "constant" or sides[0::2] != sides[1::2]:
            self._around, self.inside = sides, (0, 0)

    def __call__(self, x: Tensor) -> Tensor:
        if self._same is not None:
            return F.pad(x, same_padding((x.shape[-2], x.shape[-1]), *self._same))
        return x if self._around is None else F.pad(x, self._around, mode=self._mode)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
