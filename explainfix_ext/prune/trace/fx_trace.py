"""This module walks a network with torch.fx, and follows every channel of it: nn.Module -> ChannelGraph.

`channelprune` makes a ChannelTrace for any model that torch.fx can trace. The walk runs the network once on the example
input, with the ids of the channels beside each tensor. What an operation does with them is in rules.py and moves.py.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from . import rules
from .builder import GraphBuilder
from .calls import Call
from .fx_graph import trace_graph
from .graph import ChannelGraph, PerChannel
from .inputs import Inputs
from .kinds import MIXING, NORMS, has_channels
from .moves import move
from .numbers import Number, attribute, computed, is_number
from .values import Value, each_tensor, has_tensor, is_plain


class ChannelTrace(fx.Interpreter):
    """Walks the network: `run(*inputs)` fills `channels`.

    Layers that run in training only, such as auxiliary classifiers, are in the graph, too. They lose the channels that
    the rest of the network no longer computes.

    Args:
        model: the model in eval mode.
        inputs: its positional arguments.
        forgets: whether a norm over all channels may be one over those that stay.

    Attributes:
        channels: the graph of channels.

    Raises:
        ValueError: as `trace_graph`.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, *, forgets: bool = False) -> None:
        super().__init__(model, graph=trace_graph(model, inputs))
        self._model = model
        owned = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        self._names = {name for name, _ in owned}
        self._build = GraphBuilder(model, [str(node.target) for node in self.graph.nodes if node.op == "get_attr"])
        self._build.forgets = forgets
        self._numbers: dict[fx.Node, Number] = {}

    @property
    def channels(self) -> ChannelGraph:
        """Returns the graph of channels."""
        return self._build.graph

    def run_node(self, node: fx.Node) -> Any:
        """Runs one operation; torch.fx calls this for each in turn, and keeps what it returns as its value."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        values: list[Value] = []
        map_aggregate((args, kwargs), lambda v: values.append(v) if isinstance(v, Value) else None)
        if node.op == "placeholder":
            return each_tensor(super().placeholder(node.target, args, kwargs), self._input)
        if node.op == "get_attr":
            value = self._attribute(str(node.target))
            if is_number(value):
                self._numbers[node] = attribute(str(node.target), value)
            return value
        if node.op == "output":
            for value in values:
                self._build.protect(value, "output of the model")
                if value.ids is not None:
                    self.channels.outputs.append(value.ids.unique())
            self._build.hold_fixed_sizes()
            return None
        result = self._call(node, args, kwargs, values)
        if is_number(result):
            self._note_number(node, result)
        if isinstance(result, Value) and len(result.axes()) == 1:
            (axis,) = result.axes()
            self.channels.values[node.name] = (axis, result.along(axis))
        return result

    def _note_number(self, node: fx.Node, result: Any) -> None:
        """Notes how a number is computed. What becomes of a fraction does not show, so what it is made of must stay."""
        run = partial(getattr(super(), str(node.op)), node.target)
        number = computed(node, result, run, self.env, self._numbers)
        if number is None:
            return
        self._numbers[node] = number
        if isinstance(number.value, float):
            self._build.hold_numbers([number], f"{node.name} is computed from it")

    def _input(self, x: Tensor) -> Value:
        reason = "input of the model"
        if x.ndim < 2 or not x.is_floating_point():
            return self._build.hold([], x, reason)
        value = self._build.fresh(x, 1)
        self._build.protect(value, reason)
        return value

    def _attribute(self, name: str) -> Any:
        """Fetches a Parameter or buffer that is an operand; a vector has a number for each channel."""
        tensor = self.fetch_attr(name)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return Value(tensor, None) if isinstance(tensor, Tensor) else tensor
        axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        if len(axes) != 1:
            return Value(tensor, None)
        owner = self._model.get_submodule(name.rpartition(".")[0]) if name in self._names else None
        if owner is None or isinstance(owner, (*MIXING, *NORMS)):
            # Made by the model's code, which will make it as large again; or part of a layer, which stays whole then.
            return self._build.constant(tensor, axes[0])
        value = self._build.fresh(tensor, axes[0])
        ids = value.along(axes[0])
        self.channels.constant.append(ids)
        self._build.add_per_channel(PerChannel(name, ids, axes[0]))
        return value

    def _call(self, node: fx.Node, args: Any, kwargs: Any, values: list[Value]) -> Any:
        """Runs a module, function or method, and applies the rule for its kind."""
        if node.target in (operator.getitem, getattr) and not isinstance(args[0], Value):
            return node.target(*args)  # type: ignore[operator]
        call = Call(self, self._model, node, args, kwargs, self._numbers)
        result = call([value.tensor for value in values])
        followed = any(value.ids is not None for value in values)
        if has_tensor(result) and not (call.moves and followed):
            self._build.hold_numbers(call.numbers.values(), f"{call} computes with their number")
        if not followed:
            return each_tensor(result, lambda tensor: Value(tensor, None))
        if not has_tensor(result):
            if not is_plain(result):  # an object of the model's own may hold activations
                self._build.hold(values, None, f"it goes into a {type(result).__name__}")
            return result
        module, name = call.module, str(node.target)
        if isinstance(module, MIXING) and len(values) == 1:
            return rules.mixing_layer(self._build, name, module, values[0], result)
        has_numbers = isinstance(module, (nn.GroupNorm, nn.LayerNorm)) or (
            isinstance(module, NORMS) and has_channels(module)
        )
        if module is not None and has_numbers and len(values) == 1:
            return rules.norm(self._build, name, module, values[0], result)
        if call.moves:
            return move(self._build, call, values, result)
        return rules.elementwise(self._build, call, values, result)
