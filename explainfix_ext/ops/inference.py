"""This module defines the operators of networks that only infer: they have no gradient.

    pointwise_conv2d    act(conv2d(x * gate, weight[:, :, None, None], bias, stride) + residual): a learned 1x1
    depthwise_conv2d    act(conv2d(x, weight[:, None], bias, stride, padding, groups=C) + residual)
    finish_conv         y = act(scale * y + bias + residual), in place: what follows any other convolution
    max_pool_values     F.max_pool2d, without the places of the maxima
    mean_planes         x.mean((2, 3), keepdim=True)

`act` is a number of `ACTIVATIONS`. The kernels, csrc/cpu/ops/inference.cpp, are for float32 on the CPU, contiguous;
the functions of this module run the references for all else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .passes import ACTIVATIONS, activate

LARGEST_WINDOW = 256  # pixels that max_pool_values takes the maximum of, at most
_NAMES = list(ACTIVATIONS)


def _finished(y: Tensor, residual: Tensor | None, act: int, slope: float) -> Tensor:
    return activate(y if residual is None else y + residual, _NAMES[act], slope)


def _pointwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gate: Tensor | None, stride: int, act: int,
    slope: float,
) -> Tensor:  # fmt: skip
    x = x if gate is None else x * gate
    return _finished(F.conv2d(x, weight[:, :, None, None], bias, stride), residual, act, slope)


def _depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, padding: Sequence[int],
    act: int, slope: float,
) -> Tensor:  # fmt: skip
    return _finished(F.conv2d(x, weight[:, None], bias, stride, padding, 1, weight.shape[0]), residual, act, slope)


def _finish_conv(
    y: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None, act: int, slope: float
) -> None:
    result = y if scale is None else y * scale[:, None, None]
    y.copy_(_finished(result if bias is None else result + bias[:, None, None], residual, act, slope))


def _max_pool_values(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> Tensor:
    return F.max_pool2d(x, tuple(kernel_size), tuple(stride), tuple(padding), 1, ceil_mode)


def _mean_planes(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


_AFTER, _ACT = "Tensor? bias, Tensor? residual", "int act, float slope"
_WINDOWS = "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, bool ceil_mode"
_OPS: dict[str, tuple[str, Callable[..., Any]]] = {
    "pointwise_conv2d": (
        f"(Tensor x, Tensor weight, {_AFTER}, Tensor? gate, int stride, {_ACT}) -> Tensor",
        _pointwise_conv2d,
    ),
    "depthwise_conv2d": (
        f"(Tensor x, Tensor weight, {_AFTER}, int stride, SymInt[2] padding, {_ACT}) -> Tensor",
        _depthwise_conv2d,
    ),
    "finish_conv": (f"(Tensor(a!) y, Tensor? scale, {_AFTER}, {_ACT}) -> ()", _finish_conv),
    "max_pool_values": (f"(Tensor x, {_WINDOWS}) -> Tensor", _max_pool_values),
    "mean_planes": ("(Tensor x) -> Tensor", _mean_planes),
}
REFERENCES = {name: reference for name, (_, reference) in _OPS.items()}


def _kernel_or_reference(name: str) -> Callable[..., Any]:
    """Returns a function that runs the operator where its kernel takes the arguments, and else its reference."""
    op, reference = getattr(torch.ops.explainfix, name).default, REFERENCES[name]

    def call(x: Tensor, *others: Any) -> Any:
        kernel = x.dtype is torch.float32 and x.is_cpu and x.ndim == 4 and x.is_contiguous()
        if kernel:
            kernel = all(t.dtype is x.dtype and t.is_contiguous() for t in others if isinstance(t, Tensor))
        return (op if kernel else reference)(x, *others)

    return call


for _name, (_schema, _reference) in _OPS.items():
    torch.library.define(f"explainfix::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"explainfix::{_name}", "CompositeExplicitAutograd", _reference)
    # The references compute the shapes, too: their results are contiguous as the kernels' are.
    torch.library.register_fake(f"explainfix::{_name}", _reference)

pointwise_conv2d = _kernel_or_reference("pointwise_conv2d")
depthwise_conv2d = _kernel_or_reference("depthwise_conv2d")
finish_conv = _kernel_or_reference("finish_conv")
max_pool_values = _kernel_or_reference("max_pool_values")
mean_planes = _kernel_or_reference("mean_planes")
