"""This module asks Torch-Pruning which channels of a model are the same, and makes a ChannelGraph of the answers.

The question, once for each layer, is which rows and columns of other modules would have to be cut with its outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from explainfix_ext.nn.swap import revert
from explainfix_ext.prune.cut.layers import channels_of, nonzero_filters
from explainfix_ext.prune.trace.graph import ChannelGraph, MixingLayer, PerChannel
from explainfix_ext.prune.trace.kinds import MIXING, NORMS


class Node(Protocol):
    """Lists what is used of a node of Torch-Pruning's graph: a module, a Parameter or an operation of autograd."""

    module: Any
    inputs: list[Node]
    outputs: list[Node]
    grad_fn: Any
    pruning_dim: int  # of a Parameter


class Entry(nn.Module):
    """Marks where an input enters: Torch-Pruning leaves out autograd's leaves, but sees modules."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.channels = x.shape[min(1, x.ndim - 1)] if x.ndim else 1

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().requires_grad_() * 1  # not a leaf, so that the model may write into it


class _EntryPruner:
    """Answers what Torch-Pruning asks about an Entry, which is never pruned."""

    def prune_out_channels(self, entry: Entry, idxs: list[int]) -> Entry:
        return entry

    prune_in_channels = prune_out_channels

    def get_out_channels(self, entry: Entry) -> int:
        return entry.channels

    get_in_channels = get_out_channels


class _Bracketed(nn.Module):
    """Runs a copy of a model, of plain layers that all require grad, between marked inputs and outputs.

    Autograd does not see frozen layers: without gradients the model would have no channels.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.entries = nn.ModuleList(Entry(x) for x in tree_flatten(inputs)[0] if _is_floating(x))
        revert(self)
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    def forward(self, *inputs: Any) -> list[Tensor]:
        leaves, structure = tree_flatten(inputs)
        entries = iter(self.entries)
        entered = [next(entries)(x) if _is_floating(x) else x for x in leaves]
        outputs = tree_flatten(self.model(*tree_unflatten(entered, structure)))[0]
        followed = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
        if not followed:
            raise ValueError("autograd reaches none of its outputs")
        return [y * 1 if y.ndim else y.reshape(1) for y in followed]


@dataclass
class Group:
    """Holds channels that some layers write and others read, with what Torch-Pruning's graph says of them.

    Attributes:
        start, size: their ids are start, start + 1, ..., start + size - 1.
        nodes: Torch-Pruning's nodes that hold values of these channels (an ordered set).
        writers, readers: node -> (name of its layer, rows or columns of the weight, the channel of each, from 0).
    """

    start: int
    size: int
    nodes: dict[Node, None] = field(default_factory=dict)
    writers: dict[Node, tuple[str, Tensor, Tensor]] = field(default_factory=dict)
    readers: dict[Node, tuple[str, Tensor, Tensor]] = field(default_factory=dict)


class Coupling:
    """Finds the coupled channels of a model in eval mode, by following one input. It needs torch-pruning.

    Attributes:
        channels: the graph, in which coupled channels have the same id, or tied ids.
        groups: the groups of channels; every output channel of a layer is in one.
        nonzero: name -> (O, I/groups) bool, the filters other than zero, for each layer that is followed.
        unseen: name -> reason, for each layer that is not followed and so stays whole.

    Raises:
        Exception: Torch-Pruning, or the model, may raise any.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        import torch_pruning

        bracketed = _Bracketed(model, inputs)
        with torch.enable_grad():
            self._graph = torch_pruning.DependencyGraph().build_dependency(
                bracketed,
                inputs,
                forward_fn=lambda bracketed, inputs: bracketed(*inputs),
                customized_pruners={Entry: _EntryPruner()},
                verbose=False,
            )
        self._ops = torch_pruning.ops
        self._names: dict[Any, str] = {m: name for name, m in bracketed.model.named_modules()}
        self._names |= {p: name for name, p in bracketed.model.named_parameters()}
        modules: dict[str, Any] = {n: m for n, m in bracketed.model.named_modules() if isinstance(m, MIXING)}
        self._layers = {name: m for name, m in modules.items() if m in self._graph.module2node}
        self.unseen = {n: "autograd does not reach it on example_inputs" for n in modules if n not in self._layers}
        # With a learned 1x1 after the filters, a row goes only if it is zero both in the filters and in their product.
        both = {name: (module, model.get_submodule(name)) for name, module in self._layers.items()}
        self.nonzero = {name: nonzero_filters(one) | nonzero_filters(other) for name, (one, other) in both.items()}
        self.channels = ChannelGraph()
        self.groups: list[Group] = []
        self._slots: dict[tuple[str, str], Tensor] = {}  # (module, side) -> ids, -1 where none is known
        for name, module in self._layers.items():
            for side, size in zip(("inputs", "outputs"), channels_of(module), strict=True):
                self._slots[name, side] = torch.full((size,), -1)
        for name, module in self._layers.items():
            self._follow(name, module)
        self._complete()

    def is_product(self, node: Node) -> bool:
        return node.module not in self._names and node.grad_fn.name() == "MulBackward0"

    def _follow(self, name: str, module: Any) -> None:
        """Makes a group of those output channels of a layer that are in no group yet."""
        ids = self._slots[name, "outputs"].clone()
        roots = (ids < 0).nonzero().flatten()
        if not len(roots):
            return
        ids[roots] = self.channels.fresh(len(roots))
        group = Group(int(ids[roots[0]]), len(roots))
        prune = self._graph.get_pruner_of_module(module).prune_out_channels
        for item in self._graph.get_pruning_group(module, prune, roots.tolist()):
            self._join(group, item.dep.target, item.dep.handler, torch.tensor(item.idxs), ids[item.root_idxs])
        self.groups.append(group)

    def _join(self, group: Group, node: Node, handler: Callable[..., Any], idxs: Tensor, ids: Tensor) -> None:
        """Adds one node to a group: `idxs` is what Torch-Pruning would cut there, with the `ids` in the same order."""
        module, name = node.module, self._names.get(node.module, "")
        if isinstance(module, MIXING):
            if not self._join_layer(group, node, handler, idxs, ids):
                return
        elif isinstance(module, NORMS):
            size = module.num_parameters if isinstance(module, nn.PReLU) else module.num_features
            if not isinstance(module, nn.PReLU) or size > 1:
                self._put(name, "", size, idxs, ids)
        elif isinstance(module, nn.Parameter):
            self._put(name, str(node.pruning_dim), module.shape[node.pruning_dim], idxs, ids)
        elif isinstance(module, (Entry, self._ops._OutputOp)):
            self.channels.protect(ids, f"{'input' if isinstance(module, Entry) else 'output'} of the model")
        elif name:
            self.channels.protect(ids, f"{name} ({type(module).__name__}) computes with several channels at once")
        if any(self._takes_by_number(reader) for reader in node.outputs):
            self.channels.protect(ids, "a split or slice behind counts on their number")
        group.nodes[node] = None

    def _join_layer(self, group: Group, node: Node, handler: Callable[..., Any], idxs: Tensor, ids: Tensor) -> bool:
        """Adds a layer to a group; True if the channels are its outputs. A depthwise layer's are its inputs, too."""
        module, name = node.module, self._names[node.module]
        (n_in, n_out), part = channels_of(module), (name, idxs, ids - group.start)
        depthwise = is_depthwise(module)
        writes = depthwise or self._graph.is_out_channel_pruning_fn(handler)
        fits = not writes or self._put(name, "outputs", n_out, idxs, ids)
        fits &= (writes and not depthwise) or self._put(name, "inputs", n_in, idxs, ids)
        if getattr(module, "groups", 1) > 1 and not depthwise:
            self.channels.protect(ids, f"{name} has {module.groups} groups, which torch_pruning leaves whole")
        elif fits:
            (group.writers if writes else group.readers)[node] = part
        return writes

    def _put(self, name: str, side: str, size: int, idxs: Tensor, ids: Tensor) -> bool:
        """Notes which channels stand at these places of a module; False, and all stay, if it has no such places."""
        fits = (idxs >= 0) & (idxs < size)
        if not bool(fits.all()):
            self.channels.protect(ids, f"{name} has {size} channels, and torch_pruning ties others to it")
        slot, idxs, ids = self._slots.setdefault((name, side), torch.full((size,), -1)), idxs[fits], ids[fits]
        known = slot[idxs] >= 0
        self.channels.tie(slot[idxs[known]], ids[known])
        slot[idxs[~known]] = ids[~known]
        return bool(fits.all())

    def _takes_by_number(self, node: Node) -> bool:
        """Says whether a node splits or slices the channels, or may do so; other axes of an image do not count."""
        if not isinstance(node.module, (self._ops._SplitOp, self._ops._SliceOp, self._ops._UnbindOp)):
            return False
        sizes, axis = (getattr(node.grad_fn, f"_saved_{key}", None) for key in ("self_sym_sizes", "dim"))
        if sizes is None or axis is None or len(sizes) < 4:
            return True
        return (axis - 2**64 if axis >= 2**63 else axis) % len(sizes) == 1  # autograd keeps it unsigned

    def _complete(self) -> None:
        """Gives protected ids to channels that are in no group, and adds all layers and norms to the graph."""
        for (name, side), slot in self._slots.items():
            rest = slot < 0
            slot[rest] = self.channels.fresh(int(rest.sum()))
            self.channels.protect(slot[rest], "not made by a layer that torch_pruning follows")
            if side not in ("inputs", "outputs"):
                self.channels.per_channel.append(PerChannel(name, slot, int(side) if side else None))
        for name, module in self._layers.items():
            ids = self._slots[name, "inputs"], self._slots[name, "outputs"]
            self.channels.relations.append(MixingLayer(name, *ids, getattr(module, "groups", 1)))


def is_depthwise(module: Any) -> bool:
    """Says whether a module is a convolution whose groups are single channels."""
    return getattr(module, "groups", 1) > 1 and module.groups == module.in_channels == module.out_channels


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
