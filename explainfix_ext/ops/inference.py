"""This module defines the operators of networks that only infer: they have no gradient.

    pointwise_conv2d    act(conv2d(x, weight[:, :, None, None], bias, stride) + residual): a learned 1x1 convolution
    finish_conv         y = act(scale * y + bias + residual), in place: what follows any other convolution
    max_pool_values     F.max_pool2d, without the places of the maxima

`act` is a number of `ACTIVATIONS`. The kernels, csrc/cpu/ops/inference.cpp, are for float32 on the CPU, contiguous;
the functions of this module run the references for all else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .passes import ACTIVATIONS, activate

_NAMES = list(ACTIVATIONS)
_AFTER = "Tensor? bias, Tensor? residual"
_SCHEMAS = {
    "pointwise_conv2d": f"(Tensor x, Tensor weight, {_AFTER}, int stride, int act, float slope) -> Tensor",
    "finish_conv": f"(Tensor(a!) y, Tensor? scale, {_AFTER}, int act, float slope) -> ()",
    "max_pool_values": "(Tensor x, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, bool ceil_mode) -> Tensor",
}


def _pointwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, act: int, slope: float
) -> Tensor:
    y = F.conv2d(x, weight[:, :, None, None], bias, stride)
    return activate(y if residual is None else y + residual, _NAMES[act], slope)


def _finish_conv(
    y: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None, act: int, slope: float
) -> None:
    result = y if scale is None else y * scale[:, None, None]
    result = result if bias is None else result + bias[:, None, None]
    y.copy_(activate(result if residual is None else result + residual, _NAMES[act], slope))


def _max_pool_values(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> Tensor:
    return F.max_pool2d(x, kernel_size, stride, padding, 1, ceil_mode)


REFERENCES = {
    "pointwise_conv2d": _pointwise_conv2d, "finish_conv": _finish_conv, "max_pool_values": _max_pool_values
}  # fmt: skip
for _name, _reference in REFERENCES.items():
    torch.library.define(f"explainfix::{_name}", _SCHEMAS[_name], tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"explainfix::{_name}", "CompositeExplicitAutograd", _reference)


_OPS = torch.ops.explainfix


def _has_kernel(*tensors: Tensor | None) -> bool:
    return all(t is None or (t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()) for t in tensors)


def pointwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, act: int, slope: float
) -> Tensor:
    """Convolves x (N, C, H, W) by a weight (O, C), adds a residual of the result's shape, and activates."""
    run = _OPS.pointwise_conv2d.default if _has_kernel(x, residual) else _pointwise_conv2d
    return run(x, weight, bias, residual, stride, act, slope)


def finish_conv(
    y: Tensor, scale: Tensor | None, bias: Tensor | None, residual: Tensor | None, act: int, slope: float
) -> Tensor:
    """Scales y (N, C, H, W), adds a bias (C,) and a residual of y's shape, and activates; in place. Returns y."""
    (_OPS.finish_conv.default if _has_kernel(y, residual) else _finish_conv)(y, scale, bias, residual, act, slope)
    return y


def max_pool_values(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> Tensor:
    """Pools x (N, C, H, W) as F.max_pool2d does with dilation 1."""
    run = _OPS.max_pool_values.default if _has_kernel(x) else _max_pool_values
    return run(x, kernel_size, stride, padding, ceil_mode)


@torch.library.register_fake("explainfix::pointwise_conv2d")
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, act: int, slope: float
) -> Tensor:
    size = ((side + stride - 1) // stride for side in x.shape[2:])
    return x.new_empty((x.shape[0], weight.shape[0], *size))


torch.library.register_fake("explainfix::max_pool_values", _max_pool_values)
torch.library.register_fake("explainfix::finish_conv", lambda *args: None)
