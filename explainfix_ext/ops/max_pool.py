"""This module defines max pooling for explainfix_ext.memory: two operators that keep one byte for each output.

    max_pool            the maxima, and the place of each in its window (uint8)
    max_pool_backward   the gradient with respect to x, from that of the maxima and their places

The kernels are csrc/cpu/ops/max_pool.cpp and csrc/cuda/launch/max_pool.cu; without them, the references below run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from explainfix_ext._support.layout import memory_format_of

from .passes import kernel_or_reference

_WINDOWS = "SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding"


def _window_origins(size: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns the row (H', 1) and the column (W',) of x where each output's window begins; negative in the padding."""
    rows = torch.arange(size[0]) * stride[0] - padding[0]
    columns = torch.arange(size[1]) * stride[1] - padding[1]
    return rows[:, None], columns


def _max_pool(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    y, indices = torch.ops.aten.max_pool2d_with_indices(x, kernel_size, stride, padding, (1, 1), ceil_mode)
    rows, columns = (t.to(x.device) for t in _window_origins(y.shape[2:], stride, padding))
    places = (indices // x.shape[3] - rows) * kernel_size[1] + indices % x.shape[3] - columns
    return y, places.to(torch.uint8)


def _max_pool_backward(
    grad: Tensor, places: Tensor, input_size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:  # fmt: skip
    rows, columns = (t.to(grad.device) for t in _window_origins(places.shape[2:], stride, padding))
    at = places.long()
    indices = (at // kernel_size[1] + rows) * input_size[1] + at % kernel_size[1] + columns
    dx = grad.new_zeros(*grad.shape[:2], input_size[0] * input_size[1])
    dx = dx.scatter_add_(2, indices.flatten(2), grad.flatten(2)).unflatten(2, tuple(input_size))
    return dx.contiguous(memory_format=memory_format_of(grad))


_SCHEMAS = {
    "max_pool": f"(Tensor x, {_WINDOWS}, bool ceil_mode) -> (Tensor, Tensor)",
    "max_pool_backward": f"(Tensor grad, Tensor places, SymInt[2] input_size, {_WINDOWS}) -> Tensor",
}
REFERENCES: dict[str, Any] = {"max_pool": _max_pool, "max_pool_backward": _max_pool_backward}
for _name, _reference in REFERENCES.items():
    torch.library.define(f"explainfix::{_name}", _SCHEMAS[_name], tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"explainfix::{_name}", "CompositeExplicitAutograd", _reference)

max_pool = kernel_or_reference("max_pool", _max_pool)
max_pool_backward = kernel_or_reference("max_pool_backward", _max_pool_backward)


def _fake_max_pool(x: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
    *windows, ceil_mode = geometry
    y = torch.ops.aten.max_pool2d_with_indices(x, *windows, (1, 1), ceil_mode)[0]
    return y, torch.empty_like(y, dtype=torch.uint8)


def _fake_max_pool_backward(grad: Tensor, places: Tensor, input_size: Sequence[int], *windows: Any) -> Tensor:
    size = (*places.shape[:2], *input_size)
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format_of(grad))


torch.library.register_fake("explainfix::max_pool", _fake_max_pool)
torch.library.register_fake("explainfix::max_pool_backward", _fake_max_pool_backward)
