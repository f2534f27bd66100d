"""Levels: the output channels of one convolution in runs, each with a dilation of its own (CoConv).

Level d reads K pixels that lie d apart, and pads by (d - 1)(K - 1) / 2 more than the layer, so that all levels give
maps of one size. `FixedConv2d` and `CoConv2d` hold their levels as pairs (dilation, output channels); a layer without
any is an ordinary convolution, which here is one level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext._support.layout import as_pair

Levels = tuple[tuple[int, int], ...]  # (dilation, output channels), in the order of the channels

# Shares of the output channels, by the number of levels.
_SHARES = {1: (1,), 2: (1, 1), 3: (2, 1, 1), 4: (1, 1, 1, 1), 5: (2, 2, 2, 1, 1)}


class Level(NamedTuple):
    """Says what one level computes: `outputs` of the layer from its `inputs`, both channels, by a convolution."""

    outputs: slice
    inputs: slice
    padding: Any
    dilation: tuple[int, int]
    groups: int


def check_dilations(dilations: Any) -> None:
    """Raises ValueError unless `dilations` are one to five positive integers."""
    whole = isinstance(dilations, (tuple, list)) and all(type(d) is int and d > 0 for d in dilations)
    if not whole or len(dilations) not in _SHARES:
        raise ValueError(f"dilations must be 1 to {max(_SHARES)} positive integers, got {dilations!r}")


def split_levels(conv: nn.Conv2d, dilations: Sequence[int]) -> Levels:
    """Splits the output channels of a layer over dilations, as the paper does.

    Two, three, four and five levels have 1/2 1/2, 1/2 1/4 1/4, four times 1/4, and three times 1/4 and twice 1/8 of the
    channels. What the division leaves over is of the first level. A level has whole groups.

    Raises:
        ValueError: `dilations` are none, or not for such a layer.
    """
    check_dilations(dilations)
    if set(conv.dilation) != {1}:
        raise ValueError(f"dilation must be 1 with dilations, got {conv.dilation}")
    if not all(k % 2 for k in conv.kernel_size):
        raise ValueError(f"dilations need a kernel of odd size, got {conv.kernel_size}")
    shares = _SHARES[len(dilations)]
    units = conv.out_channels if conv.groups == 1 else conv.groups
    per_share = units // sum(shares)
    if per_share == 0:
        what = "out_channels" if conv.groups == 1 else "groups"
        raise ValueError(f"dilations {tuple(dilations)} need {what} of at least {sum(shares)}, got {units}")
    sizes = [share * per_share for share in shares]
    sizes[0] += units - sum(sizes)
    return tuple((d, size * (conv.out_channels // units)) for d, size in zip(dilations, sizes, strict=True))


def kept_levels(levels: Levels, outputs: Tensor) -> Levels:
    """Returns the levels of a layer that keeps these output channels, by number: each channel keeps its dilation."""
    kept, begin = [], 0
    for dilation, size in levels:
        count = int(((outputs >= begin) & (outputs < begin + size)).sum())
        kept += [(dilation, count)] if count else []
        begin += size
    return tuple(kept)


def levels_of(conv: Any) -> list[Level]:
    """Returns the levels of a convolution, fixed or not, by pairs (vertical, horizontal); one without dilations is a
    single level, with its own padding."""
    if not (levels := getattr(conv, "levels", ())):
        outputs, inputs = slice(0, conv.out_channels), slice(0, conv.in_channels)
        padding = conv.padding if isinstance(conv.padding, str) else as_pair(conv.padding, 0)
        return [Level(outputs, inputs, padding, as_pair(conv.dilation), conv.groups)]
    found, begin = [], 0
    rows, columns = conv.out_channels // conv.groups, conv.in_channels // conv.groups  # of a group
    for dilation, size in levels:
        first, groups = (begin // rows, size // rows) if conv.groups > 1 else (0, 1)
        inputs = slice(first * columns, (first + groups) * columns)
        padding = _padding(conv, dilation)
        found.append(Level(slice(begin, begin + size), inputs, padding, (dilation, dilation), groups))
        begin += size
    return found


def input_of(conv: Any, level: Level, x: Tensor) -> tuple[Tensor, Any]:
    """Returns what a level of a layer reads of its input, and the padding by zeros that its convolution is to add."""
    if level.groups < conv.groups:
        x = x.narrow(-3, level.inputs.start, level.inputs.stop - level.inputs.start)
    if conv.padding_mode == "zeros":
        return x, level.padding
    if not getattr(conv, "levels", ()):
        return F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
    up, left = level.padding
    return F.pad(x, (left, left, up, up), mode=conv.padding_mode), 0


def by_levels(conv: Any, x: Tensor, convolve: Callable[[int, Level, Tensor, Any], Tensor]) -> Tensor:
    """Computes a layer level by level: convolve(number, level, input, padding) gives the level's output channels."""
    outputs = [convolve(k, level, *input_of(conv, level, x)) for k, level in enumerate(levels_of(conv))]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -3)


def convolve_by_levels(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes a layer with levels by torch's convolutions, with any weight and bias of its shape."""

    def convolve(k: int, level: Level, x: Tensor, padding: Any) -> Tensor:
        part = None if bias is None else bias[level.outputs]
        return F.conv2d(x, weight[level.outputs], part, conv.stride, padding, level.dilation, level.groups)

    return by_levels(conv, x, convolve)


def _padding(conv: Any, dilation: int) -> tuple[int, int]:
    """Returns the padding of a level, in pixels."""
    reach = [(k - 1) // 2 for k in conv.kernel_size]
    given = {"same": reach, "valid": [0, 0]}[conv.padding] if isinstance(conv.padding, str) else conv.padding
    up, left = (p + (dilation - 1) * r for p, r in zip(given, reach, strict=True))
    return up, left
