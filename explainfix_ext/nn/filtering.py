"""Computes what a FixedConv2d's filters make of its input, before a learned 1x1: whole, or level by level."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from explainfix_ext import functional  # called by attribute, where torch.fx.wrap can catch the call
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.basis import compose_weight
from explainfix_ext.ops.plans.plan import ConvPlan

from .follow_rank0 import follow_rank0
from .levels import Level, by_levels, convolve_by_levels


def filtered(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves with the fixed filters of a FixedConv2d, and adds the bias."""
    follow_rank0()
    if layer.levels:
        return _filtered_by_levels(layer, x, bias)
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    coeff, bank, geometry = layer.coeff, layer._held.bank, (layer.stride, padding, layer.dilation, layer.groups)
    if coeff is not None:
        return functional.convolve_learned(x, bank.basis, coeff, bias, *geometry, bank.scale)
    return functional.convolve_bank(x, bank, layer._plan(), bias, *geometry)


def banks_of(layer: Any) -> list[tuple[FilterBank, ConvPlan]]:
    """Returns the filters and the plan of each level of a FixedConv2d that learns no coefficients."""
    dtype = layer._held.call_dtype()
    return [(part.bank, part.plan(dtype, layer.training)) for part in layer._held.parts or [layer._held]]


def _filtered_by_levels(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    bank, coeff = layer._held.bank, layer.coeff
    if coeff is not None:
        return convolve_by_levels(layer, x, compose_weight(bank.basis, coeff, bank.scale, coeff.dtype), bias)
    parts = banks_of(layer)

    def convolve(k: int, level: Level, x: Tensor, padding: Any) -> Tensor:
        some = None if bias is None else bias[level.outputs]
        return functional.convolve_bank(x, *parts[k], some, layer.stride, padding, level.dilation, level.groups)

    return by_levels(layer, x, convolve)
