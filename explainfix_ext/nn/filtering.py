"""Computes what the filters of a layer with several dilations make of its input, level by level."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from explainfix_ext import functional  # called by attribute, where torch.fx.wrap can catch the call
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.basis import compose_weight
from explainfix_ext.ops.plans.plan import ConvPlan

from .levels import Level, by_levels, convolve_by_levels


def banks_of(layer: Any) -> list[tuple[FilterBank, ConvPlan]]:
    """Returns the filters and the plan of each level of a FixedConv2d that learns no coefficients."""
    dtype = layer._held.call_dtype()
    return [(part.bank, part.plan(dtype, layer.training)) for part in layer._held.parts or [layer._held]]


def filtered_by_levels(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves with the fixed filters of a FixedConv2d that has levels, and adds the bias."""
    bank, coeff = layer._held.bank, layer.coeff
    if coeff is not None:
        return convolve_by_levels(layer, x, compose_weight(bank.basis, coeff, bank.scale, coeff.dtype), bias)
    parts = banks_of(layer)

    def convolve(k: int, level: Level, x: Tensor, padding: Any) -> Tensor:
        some = None if bias is None else bias[level.outputs]
        return functional.convolve_bank(x, *parts[k], some, layer.stride, padding, level.dilation, level.groups)

    return by_levels(layer, x, convolve)
