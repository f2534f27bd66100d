"""Run a network once, every value beside the ids of its channels: torch.fx module -> ChannelGraph."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from explainfix_ext.nn.fixed_conv2d import FixedConv2d

from .calls import Call
from .fx_graph import trace_graph
from .graph import ChannelGraph, Layer, Map, PerChannel, first_of
from .kinds import CONVS, NORMS, TRANSPOSED, has_channels, own_way
from .values import Value, compact, each_tensor, has_tensor, is_plain, moves_alike, per_channel_axis


class ChannelTrace(fx.Interpreter):
    """Runs `model` on one input and builds `.channels`.

    Attributes:
        has_heads: layers that run in training only, such as auxiliary classifiers, are in the graph: what goes that
            they read, goes from them, too.

    Raises:
        ValueError: torch.fx cannot trace the model.
    """

    def __init__(self, model: nn.Module) -> None:
        graph, self.has_heads = trace_graph(model)
        super().__init__(model, graph=graph)
        self.root = model
        self.channels = ChannelGraph()
        self._uses: dict[str, list[Tensor]] = {}  # ids of a module's or Parameter's first use
        self._owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)

    def run_node(self, node: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        values: list[Value] = []
        map_aggregate((args, kwargs), lambda v: values.append(v) if isinstance(v, Value) else None)
        if node.op == "placeholder":
            return each_tensor(super().placeholder(node.target, args, kwargs), self._input)
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op == "output":
            for value in values:
                self._protect(value, "output of the model")
            return None
        result = self._call(node, args, kwargs, values)
        if isinstance(result, Value) and len(result.axes()) == 1:
            (axis,) = result.axes()
            self.channels.values[node.name] = (axis, result.along(axis))
        return result

    def _call(self, node: fx.Node, args: Any, kwargs: Any, values: list[Value]) -> Any:
        if node.target in (operator.getitem, getattr) and not isinstance(args[0], Value):
            return node.target(*args)  # type: ignore[operator]
        call = Call(self, self.root, node, args, kwargs)
        result = call([value.tensor for value in values])
        if not any(value.ids is not None for value in values):
            return each_tensor(result, lambda tensor: Value(tensor, None))
        if not has_tensor(result):
            if not is_plain(result):  # an object of the model's own, with who knows what in it
                self._unknown(values, None, f"it goes into a {type(result).__name__}")
            return result
        module = call.module
        if isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear)) and len(values) == 1:
            return self._layer(str(node.target), module, values[0], result)
        if isinstance(module, NORMS) and len(values) == 1 and has_channels(module):
            return self._norm(str(node.target), module, values[0], result)
        if isinstance(module, nn.GroupNorm) and len(values) == 1:
            return self._group_norm(str(node.target), module, values[0], result)
        if call.moves:
            return self._move(call, values, result)
        return self._elementwise(call, values, result)

    # What a network begins with ---------------------------------------------------------------------------------------

    def _input(self, x: Tensor) -> Value:
        reason = "input of the model"
        if x.ndim < 2 or not x.is_floating_point():
            return self._unknown([], x, reason)
        value = self._fresh(x, 1)
        self._protect(value, reason)
        return value

    def _attribute(self, name: str) -> Any:
        """A Parameter or buffer as operand: if it is a vector, it has a number for each channel, maybe."""
        tensor = self.fetch_attr(name)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return Value(tensor, None) if isinstance(tensor, Tensor) else tensor
        axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        if len(axes) != 1:
            return Value(tensor, None)
        value = self._fresh(tensor, axes[0])
        ids = value.along(axes[0])
        self.channels.constant.append(ids)
        self._record(PerChannel(name, ids, axes[0]))
        return value

    # Kinds of operations ----------------------------------------------------------------------------------------------

    def _layer(self, name: str, module: Any, value: Value, result: Tensor) -> Any:
        if not isinstance(module, nn.Linear) and value.tensor.ndim != len(module.kernel_size) + 2:
            return self._unknown([value], result, f"{name} ({type(module).__name__}) reads it without a batch axis")
        axis = value.tensor.ndim - 1 if isinstance(module, nn.Linear) else 1
        out_axis = result.ndim - 1 if isinstance(module, nn.Linear) else 1
        ids = self._along(value, axis) if value.tensor.ndim > 1 else None
        if ids is None:
            return self._unknown([value], result, f"{name} ({type(module).__name__}) reads them along another axis")
        if reason := own_way(module):
            return self._unknown([value], result, f"{name} ({type(module).__name__}): {reason}")
        graph, groups = self.channels, getattr(module, "groups", 1)
        output = self._fresh(result, out_axis)
        outputs = output.along(out_axis)
        pointwise = isinstance(module, FixedConv2d) and module.pointwise is not None
        first = graph.fresh(len(outputs)) if pointwise else outputs
        graph.relations.append(Layer(name, ids, first, groups))
        if pointwise:  # the weight of the 1x1 stays square
            graph.relations.append(Layer(name, first, outputs, 1, "pointwise"))
            graph.tie(first, outputs)
        if groups > 1:
            self._tie_groups(ids.reshape(groups, -1), first.reshape(groups, -1))
        if any(self._owners[id(p)] > 1 for p in module.parameters(recurse=False)):
            graph.protect(torch.cat([ids, outputs]), f"{name} shares its weight with another layer")
        self._tie_to_first_use(name, torch.cat([ids, outputs]))
        return output

    def _tie_groups(self, inputs: Tensor, outputs: Tensor) -> None:
        """Groups stay equal. Many small ones, such as those of depthwise and ResNeXt layers, go as a whole; of few
        large ones the same channels go in each."""
        if inputs.shape[0] >= inputs.shape[1]:
            self.channels.tie(inputs[:, :1], torch.cat([inputs, outputs], 1))
        else:
            self.channels.tie(inputs[:1], inputs)
            self.channels.tie(outputs[:1], outputs)

    def _norm(self, name: str, module: nn.Module, value: Value, result: Tensor) -> Any:
        """A number of its own for each channel."""
        ids = self._along(value, 1)
        if ids is None:
            return self._unknown([value], result, f"{name} ({type(module).__name__}) reads them along another axis")
        output = self._fresh(result, 1)
        self.channels.relations.append(Map((ids,), output.along(1)))
        self.channels.tie(ids, output.along(1))
        self._record(PerChannel(name, output.along(1)))
        return output

    def _group_norm(self, name: str, module: nn.GroupNorm, value: Value, result: Tensor) -> Any:
        """A group is normalised together, so it goes together."""
        ids = self._along(value, 1)
        if ids is None:
            return self._unknown([value], result, f"{name} (GroupNorm) reads them along another axis")
        grouped = ids.reshape(module.num_groups, -1)
        self.channels.tie(grouped[:, :1], grouped)
        output = self._fresh(result, 1)
        fellows = [grouped[:, k].repeat_interleave(grouped.shape[1]) for k in range(grouped.shape[1])]
        self.channels.relations.append(Map(tuple(fellows), output.along(1)))
        self.channels.tie(ids, output.along(1))
        self._record(PerChannel(name, output.along(1)))
        return output

    def _elementwise(self, call: Call, values: list[Value], result: Any) -> Any:
        """An operation that treats every channel by itself, which is tried out; any other protects what it touches."""
        reason = f"{call} computes with several channels at once"
        channels = [i for i, value in enumerate(values) if value.axes()]
        if not channels or not isinstance(result, Tensor):
            return self._unknown(values, result, reason if channels else "it is a single channel")
        singles = [self._single(values[i]) for i in channels]
        lengths = {value.tensor.shape[axis] for value, axis in singles}
        if len(lengths) != 1:
            return self._unknown(values, result, reason)
        operands = [(value.tensor, axis, value.along(axis)) for value, axis in singles]

        def replaced(tensors: list[Tensor]) -> Any:
            whole = [value.tensor.clone() for value in values]  # a clone: the operation may work in place
            for i, tensor in zip(channels, tensors, strict=True):
                whole[i] = tensor
            return call(whole)

        axis = per_channel_axis(replaced, operands)
        if axis is None:
            return self._unknown(values, result, reason)
        ids = [one for _, _, one in operands]
        spread = [value for i, value in enumerate(values) if i not in channels and value.ids is not None]
        for value in spread:
            self._protect(value, f"{call} spreads it over several channels")
        _, inverse = torch.stack(ids).unique(dim=1, return_inverse=True)
        output = self.channels.fresh(int(inverse.max()) + 1)[inverse]
        for one in ids:
            self.channels.tie(one, output)
        ids += [value.ids.reshape(-1).expand(len(output)) for value in spread if value.ids is not None]
        self.channels.relations.append(Map(tuple(ids), output, call.multiplies))
        return Value(result, _placed(output, axis, result.ndim))

    def _move(self, call: Call, values: list[Value], result: Any) -> Any:
        """Ids go where the elements go; ties see to it that the operation still does that when some are gone."""
        values = [self._constant(v) if v.ids is None and v.tensor.is_floating_point() else v for v in values]
        before = [value.tensor if value.ids is None else value.spread() for value in values]  # indices stay
        moved = call(before)
        after = [moved] if isinstance(moved, Tensor) else list(moved)
        calls = list(call.variants(len(after)))
        for there, new in self._possible_ties(call, values[0], before, after):
            if moves_alike(calls, before, after, [*there, *new]):
                self.channels.ties += new
                if isinstance(result, Tensor):
                    return Value(result, compact(moved))
                return tuple(Value(t, compact(ids)) for t, ids in zip(result, after, strict=True))
        return self._unknown(values, result, f"{call} has positions or sizes written in the code")

    def _possible_ties(
        self, call: Call, value: Value, before: list[Tensor], after: list[Tensor]
    ) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """(ties that are there, new ones). New: whatever is found at one position along an axis; or a split's parts,
        position by position; or the groups of a shuffle."""
        yield [], []  # most operations need none, and those that are there are slow to find
        there = self._ties_within(before)
        yield there, []
        groups = call.shuffled_groups
        if groups and value.axes() == [1]:
            grouped = value.along(1).reshape(groups, -1)
            yield there, [torch.stack([grouped[:1].expand_as(grouped).reshape(-1), grouped.reshape(-1)])]
        elif call.splits:
            if len({part.shape for part in after}) == 1:
                first, *others = (part.long().reshape(-1) for part in after)
                yield there, [torch.stack([first, other]) for other in others]
            return
        for part in after:
            ids = compact(part)
            for axis in (axis for axis, size in enumerate(ids.shape) if size > 1):
                rows = ids.movedim(axis, 0).flatten(1)
                yield there, [torch.stack([rows[:, :1].expand_as(rows).reshape(-1), rows.reshape(-1)])]

    def _ties_within(self, before: list[Tensor]) -> list[Tensor]:
        """Ties that there are already between the ids, as pairs (id, its group's first)."""
        known = torch.cat([t.reshape(-1) for t in before]).long().unique()
        groups = self.channels.tied_groups()[known]
        _, inverse = groups.unique(return_inverse=True)
        return [torch.stack([known, known[first_of(inverse)]])]

    def _unknown(self, values: list[Value], result: Any, reason: str) -> Any:
        """All that goes in and comes out must stay, for the reason that was there first."""
        held = next((value.held for value in values if value.held), reason)
        for value in values:
            self._protect(value, held)

        def opaque(tensor: Tensor) -> Value:  # one id for all: whatever reads it keeps all inputs
            ids = self.channels.fresh(1)
            self.channels.protect(ids, held)
            return Value(tensor, ids.reshape([1] * tensor.ndim), held)

        return each_tensor(result, opaque)

    # Ids --------------------------------------------------------------------------------------------------------------

    def _fresh(self, tensor: Tensor, axis: int) -> Value:
        return Value(tensor, _placed(self.channels.fresh(tensor.shape[axis]), axis, tensor.ndim))

    def _constant(self, value: Value) -> Value:
        fresh = self._fresh(value.tensor, min(1, value.tensor.ndim - 1))
        self._protect(fresh, "a constant of the model")
        return fresh

    def _protect(self, value: Value, reason: str) -> None:
        if value.ids is not None:
            self.channels.protect(value.ids, reason)

    def _along(self, value: Value, axis: int) -> Tensor | None:
        """Ids along `axis`; None if they change along others only."""
        if len(value.axes()) > 1:
            value, _ = self._single(value, axis)
        return value.along(axis) if value.axes() in ([], [axis]) else None

    def _single(self, value: Value, axis: int | None = None) -> tuple[Value, int]:
        """A value whose ids change along one axis only; what is found elsewhere is tied together, and read."""
        axes = value.axes()
        if len(axes) == 1:
            return value, axes[0]
        axis = axis if axis is not None else (1 if 1 in axes else axes[0])
        assert value.ids is not None
        rows = value.ids.expand(*(s if s > 1 else 1 for s in value.ids.shape)).movedim(axis, 0).flatten(1)
        rows = rows.expand(value.tensor.shape[axis], -1)
        self.channels.tie(rows[:, :1], rows)
        output = self.channels.fresh(len(rows))
        self.channels.tie(rows[:, 0], output)
        self.channels.relations.append(Map(tuple(rows.unbind(1)), output))
        return Value(value.tensor, _placed(output, axis, value.tensor.ndim)), axis

    def _record(self, use: PerChannel) -> None:
        module = self.root.get_submodule(use.name) if use.axis is None else None
        if module is not None and any(self._owners[id(p)] > 1 for p in module.parameters(recurse=False)):
            self.channels.protect(use.ids, f"{use.name} shares its weight with another layer")
        if self._tie_to_first_use(use.name, use.ids):
            self.channels.per_channel.append(use)

    def _tie_to_first_use(self, name: str, ids: Tensor) -> bool:
        """A module that runs twice must lose the same channels both times. True the first time."""
        for earlier in self._uses.get(name, []):
            self.channels.tie(earlier, ids)
        first = name not in self._uses
        self._uses.setdefault(name, [ids])
        return first


def _placed(ids: Tensor, axis: int, ndim: int) -> Tensor:
    return ids.reshape([-1 if a == axis else 1 for a in range(ndim)])
