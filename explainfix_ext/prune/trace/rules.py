"""This module says what each kind of operation does with channels: layers, norms, and all that is tried out.

The walk (fx_trace.py) calls one rule for each operation of the network. A rule takes Values, adds relations, ties and
protection to the graph, and returns the operation's result as a Value. moves.py has the rule for reshapes and the like.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext.nn.fixed_conv import FixedConv

from .builder import GraphBuilder, placed
from .calls import Call
from .graph import Map, MixingLayer, PerChannel
from .kinds import why_uncuttable
from .norms import axis_of_norm, runs_across
from .trials import per_channel_axis, stays_even
from .values import Value


def mixing_layer(build: GraphBuilder, name: str, module: Any, value: Value, result: Tensor) -> Any:
    """Enters a convolution or linear layer: it makes new channels, each of which reads the channels of its group."""
    linear = isinstance(module, nn.Linear)
    described = f"{name} ({type(module).__name__})"
    if not linear and value.tensor.ndim != len(module.kernel_size) + 2:
        return build.hold([value], result, f"{described} reads it without a batch axis")
    axis, out_axis = (value.tensor.ndim - 1, result.ndim - 1) if linear else (1, 1)
    ids = build.along(value, axis) if value.tensor.ndim > 1 else None
    if ids is None:
        return build.hold([value], result, f"{described} reads them along another axis")
    if reason := why_uncuttable(module):
        return build.hold([value], result, f"{described}: {reason}")
    graph, groups = build.graph, getattr(module, "groups", 1)
    output = build.fresh(result, out_axis)
    outputs = output.along(out_axis)
    pointwise = isinstance(module, FixedConv) and module.pointwise is not None
    filtered = graph.fresh(len(outputs)) if pointwise else outputs
    graph.relations.append(MixingLayer(name, ids, filtered, groups))
    if pointwise:
        graph.relations.append(MixingLayer(name, filtered, outputs, part="pointwise"))
        graph.tie(filtered, outputs)  # the learned 1x1 stays square
    if groups > 1:
        _tie_groups(build, ids.reshape(groups, -1), filtered.reshape(groups, -1))
    both = torch.cat([ids, outputs])
    if build.shares_weight(module):
        graph.protect(both, f"{name} shares its weight with another layer")
    build.tie_to_first_use(name, both)
    return output


def _tie_groups(build: GraphBuilder, inputs: Tensor, outputs: Tensor) -> None:
    """Ties channels so that all groups of a convolution keep the same size.

    Many small groups, as in depthwise and ResNeXt layers, are removed whole; of few large groups, each loses the same
    channels.
    """
    if inputs.shape[0] >= inputs.shape[1]:
        build.graph.tie(inputs[:, :1], torch.cat([inputs, outputs], 1))
    else:
        build.graph.tie(inputs[:1], inputs)
        build.graph.tie(outputs[:1], outputs)


def norm(build: GraphBuilder, name: str, module: nn.Module, value: Value, result: Tensor) -> Any:
    """Enters a norm or PReLU: every channel has numbers of its own; GroupNorm ties the channels of each group.

    LayerNorm and GroupNorm of one group are only entered if removed channels may be forgotten.
    """
    axis: int | None = 1
    across = runs_across(module)
    if across:
        axis = axis_of_norm(module, value.tensor, result) if build.forgets else None
    if axis is None:
        reason = f"{name} ({type(module).__name__}) computes with several channels at once"
        hint = "" if build.forgets else '; bn_bias="drop" takes it over those that stay'
        return build.hold([value], result, reason + hint)
    ids = build.along(value, axis)
    if ids is None:
        return build.hold([value], result, f"{name} ({type(module).__name__}) reads them along another axis")
    output = build.fresh(result, axis)
    operands: tuple[Tensor, ...] = (ids,)
    if isinstance(module, nn.GroupNorm) and not across:  # each channel depends on all of its group
        grouped = ids.reshape(module.num_groups, -1)
        build.graph.tie(grouped[:, :1], grouped)
        operands = tuple(column.repeat_interleave(grouped.shape[1]) for column in grouped.unbind(1))
    build.graph.relations.append(Map(operands, output.along(axis)))
    build.graph.tie(ids, output.along(axis))
    build.add_per_channel(PerChannel(name, output.along(axis)))
    return output


def elementwise(build: GraphBuilder, call: Call, values: list[Value], result: Any) -> Any:
    """Tries out any other operation: if it treats every channel by itself, it maps them; if not, they must stay."""
    reason = f"{call} computes with several channels at once"
    with_channels = [i for i, value in enumerate(values) if value.axes()]
    if not with_channels or not isinstance(result, Tensor) or call.mixes:
        return build.hold(values, result, reason if with_channels else "it is a single channel")

    def replaced(tensors: list[Tensor]) -> Any:
        whole = [value.tensor.clone() for value in values]  # a clone: the operation may work in place
        for i, tensor in zip(with_channels, tensors, strict=True):
            whole[i] = tensor
        return call(whole)

    for axes in _axes_to_try([values[i] for i in with_channels]):
        tried = [(values[i], k) for i, k in zip(with_channels, axes, strict=True)]
        axis = per_channel_axis(replaced, [(value.tensor, k, _ids_along(value, k)) for value, k in tried])
        if axis is None:
            continue
        singles = [build.single(value, k) for value, k in tried]
        operands = [value.along(k) for value, k in singles]
        broadcast = [value for value in values if value.ids is not None and not value.axes()]
        for value in broadcast:
            build.protect(value, f"{call} spreads it over several channels")
        even = not call.takes_sizes and stays_even(replaced, [(value.tensor, k) for value, k in singles], axis)
        return _mapped(build, call, operands, broadcast, result, axis, even)
    return build.hold(values, result, reason)


def _axes_to_try(values: list[Value]) -> Iterator[list[int]]:
    """Yields an axis of channels for each value: its only one; or, for a stack of branches, first the longest."""
    sizes = {axis: value.tensor.shape[axis] for value in values for axis in value.axes()}
    for axis in sorted(sizes, key=lambda axis: (-sizes[axis], axis)):
        axes = [axis if axis in value.axes() else value.axes()[0] for value in values]
        whole = all(len(value.axes()) == 1 or k == axis for value, k in zip(values, axes, strict=True))
        if whole and len({value.tensor.shape[k] for value, k in zip(values, axes, strict=True)}) == 1:
            yield axes


def _ids_along(value: Value, axis: int) -> Tensor:
    """Returns the ids along `axis`; where others change, too, numbers that tell all positions apart."""
    return value.along(axis) if value.axes() == [axis] else torch.arange(value.tensor.shape[axis])


def _mapped(
    build: GraphBuilder,
    call: Call,
    operands: list[Tensor],
    broadcast: list[Value],
    result: Tensor,
    axis: int,
    even: bool,
) -> Value:
    """Gives the result of a map new ids, one for each different combination of its operands' channels."""
    _, combination = torch.stack(operands).unique(dim=1, return_inverse=True)
    output = build.graph.fresh(int(combination.max()) + 1)[combination]
    for ids in operands:
        build.graph.tie(ids, output)
    spread = [value.ids.reshape(-1).expand(len(output)) for value in broadcast if value.ids is not None]
    build.graph.relations.append(Map((*operands, *spread), output, call.multiplies, even))
    return placed(result, output, axis)
