"""plain_conv makes the plain convolution that computes what a fixed layer does: its `to_conv2d`, and `revert`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .levels import levels_of

# Attributes not taken over when a fixed layer replaces a plain one, or a plain one replaces it. save_memory has two.
OWN = ("_parameters", "_held", "_plain_class", "_saving", "__module__")


def plain_conv(layer: Any, requires_grad: bool) -> Any:
    """Returns what `FixedConv1d.to_conv1d` and `FixedConv2d.to_conv2d` describe."""
    if torch.nn.utils.parametrize.is_parametrized(layer):
        names = ", ".join(cast(nn.ModuleDict, layer.parametrizations))
        raise TypeError(f"the layer's {names} is parametrized: remove_parametrizations first")
    wide = bool(layer.levels) and layer.pointwise is not None
    plain_class = nn.Conv2d if wide else layer._plain_class
    plain = plain_class.__new__(plain_class)
    plain.__dict__.update({k: v for k, v in layer.__dict__.items() if k not in OWN})
    weight = layer.weight.detach()
    if wide:
        weight = _widen(plain, weight)
    if layer.pointwise is not None:  # each group's filters, mixed into all outputs: one group then
        mix = layer.pointwise.detach().flatten(1)
        groups = zip(mix.chunk(layer.groups, 1), weight.chunk(layer.groups), strict=True)
        weight = torch.cat([torch.tensordot(m, w, dims=1) for m, w in groups], 1)
        plain.groups = 1
    others = {name: p for name, p in layer._parameters.items() if name not in ("coeff", "pointwise")}
    plain._parameters = {"weight": nn.Parameter(weight, requires_grad), **others}
    return plain


def _widen(plain: Any, weight: Tensor) -> Tensor:
    """Gives a layer with levels one kernel, as wide as the widest level, with zeros between the pixels of each.

    A 1x1 that mixes channels of several dilations can be multiplied into such filters alone.
    """
    levels, kernel = levels_of(plain), plain.kernel_size
    most = max(level.dilation[0] for level in levels)
    size = [most * (k - 1) + 1 for k in kernel]
    wide = weight.new_zeros(*weight.shape[:2], *size)
    for level in levels:
        d = level.dilation[0]
        reach = [(most - d) * (k - 1) // 2 for k in kernel]  # how far the level is from the border
        rows, columns = (slice(r, n - r, d) for r, n in zip(reach, size, strict=True))
        wide[level.outputs, :, rows, columns] = weight[level.outputs]
    up, left = max(level.padding for level in levels)
    plain.kernel_size, plain.padding = tuple(size), (up, left)
    plain._reversed_padding_repeated_twice = [left, left, up, up]
    plain.__dict__.pop("levels")
    return wide
