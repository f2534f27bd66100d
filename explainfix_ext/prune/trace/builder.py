"""This module holds GraphBuilder, with which rules give ids to channels, and note what must stay or go together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .graph import ChannelGraph, Map, PerChannel
from .numbers import Number
from .values import Value, each_tensor


class GraphBuilder:
    """Builds the ChannelGraph of one model.

    Args:
        model: the model.
        read: names of Parameters that the model's own code reads.

    Attributes:
        graph: the graph so far.
        forgets: whether a norm over all channels may be one over those that stay.
    """

    def __init__(self, model: nn.Module, read: Iterable[str] = ()) -> None:
        self.graph = ChannelGraph()
        self._model = model
        self._uses: dict[str, Tensor] = {}  # name of a module or Parameter -> ids of its first use
        self._owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
        self.forgets = False
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._owners.update(id(parameters[name]) for name in {*read} if name in parameters)

    def fresh(self, tensor: Tensor, axis: int) -> Value:
        """Returns `tensor` as a Value with new ids along `axis`."""
        return placed(tensor, self.graph.fresh(tensor.shape[axis]), axis)

    def constant(self, tensor: Tensor, axis: int | None = None) -> Value:
        """Returns a tensor without channels as a Value whose new ids must stay."""
        value = self.fresh(tensor, min(1, tensor.ndim - 1) if axis is None else axis)
        self.protect(value, "a constant of the model")
        return value

    def protect(self, value: Value, reason: str) -> None:
        """Keeps every channel of `value`."""
        if value.ids is not None:
            self.graph.protect(value.ids, reason)

    def hold(self, values: list[Value], result: Any, reason: str) -> Any:
        """Keeps all channels that an operation takes in or gives, for the first reason that was found.

        Returns:
            `result` with a Value of a single protected id for each tensor: whatever reads it keeps all its inputs.
        """
        held = next((value.held for value in values if value.held), reason)
        for value in values:
            self.protect(value, held)

        def opaque(tensor: Tensor) -> Value:
            ids = self.graph.fresh(1)
            self.graph.protect(ids, held)
            return Value(tensor, ids.reshape([1] * tensor.ndim), held)

        return each_tensor(result, opaque)

    def hold_numbers(self, numbers: Iterable[Number], reason: str) -> None:
        """Keeps what numbers of the model's code are computed from: attributes of modules, and numbers of channels."""
        for number in numbers:
            self.graph.fixed.update(number.attributes)
            for ids in number.counts(self.graph.count):
                self.graph.protect(ids, reason)

    def hold_fixed_sizes(self) -> None:
        """Keeps what is counted by attributes that must keep their values."""
        for size in self.graph.sizes:
            if (names := {*size.number.attributes}) and names <= self.graph.fixed:
                self.graph.protect(size.rows, f"{', '.join(sorted(names))} counts it, and is used otherwise, too")

    def along(self, value: Value, axis: int) -> Tensor | None:
        """Returns the ids along `axis`, tied first where others change, too; None if they change along another only."""
        if len(value.axes()) > 1:
            value, _ = self.single(value, axis)
        return value.along(axis) if value.axes() in ([], [axis]) else None

    def single(self, value: Value, axis: int | None = None) -> tuple[Value, int]:
        """Returns a Value whose ids change along one axis only, and that axis.

        Where they change along several, all ids at one position of `axis` are tied together and become one new id.
        """
        axes = value.axes()
        if len(axes) == 1:
            return value, axes[0]
        axis = axis if axis is not None else (1 if 1 in axes else axes[0])
        assert value.ids is not None
        rows = value.ids.expand(*(s if s > 1 else 1 for s in value.ids.shape)).movedim(axis, 0).flatten(1)
        rows = rows.expand(value.tensor.shape[axis], -1)
        self.graph.tie(rows[:, :1], rows)
        output = self.graph.fresh(len(rows))
        self.graph.tie(rows[:, 0], output)
        self.graph.relations.append(Map(tuple(rows.unbind(1)), output, even=False))
        return placed(value.tensor, output, axis), axis

    def add_per_channel(self, use: PerChannel) -> None:
        """Notes a norm or a Parameter that has a number for each channel."""
        if use.axis is None and self.shares_weight(self._model.get_submodule(use.name)):
            self.graph.protect(use.ids, f"{use.name} shares its weight with another layer")
        if self.tie_to_first_use(use.name, use.ids):
            self.graph.per_channel.append(use)

    def shares_weight(self, module: nn.Module) -> bool:
        """Says whether another module owns one of the module's Parameters, too, or the model's own code reads it."""
        return any(self._owners[id(p)] > 1 for p in module.parameters(recurse=False))

    def tie_to_first_use(self, name: str, ids: Tensor) -> bool:
        """Ties the channels of a module that runs again to those of its first run; True if this is the first."""
        if name not in self._uses:
            self._uses[name] = ids
            return True
        self.graph.tie(self._uses[name], ids)
        return False


def placed(tensor: Tensor, ids: Tensor, axis: int) -> Value:
    """Returns `tensor` as a Value with these ids along `axis`."""
    return Value(tensor, ids.reshape([-1 if a == axis else 1 for a in range(tensor.ndim)]))
