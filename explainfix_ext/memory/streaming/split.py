"""Traces a network with torch.fx, and cuts it in two: the part that is streamed, and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import NamedTuple

from torch import fx, nn

from explainfix_ext._support.text import first_line

_SIZES = ("shape", "size", "dim", "ndim", "dtype", "device")


class _Tracer(fx.Tracer):
    """Traces the root and the modules in `opened`; every other module is one call, hooks and control flow included."""

    def __init__(self, opened: Set[str]) -> None:
        super().__init__()
        self._opened = opened

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name not in self._opened


def trace(model: nn.Module, opened: Set[str]) -> fx.Graph:
    """Returns the calls that the forward of `model`, in its mode, makes.

    Raises:
        ValueError: torch.fx cannot trace it.
    """
    try:
        return _Tracer(opened).trace(model)
    except Exception as error:  # a model may raise anything on a proxy
        raise ValueError(f"model cannot be traced by torch.fx: {first_line(error)}") from error


def parents(name: str) -> set[str]:
    """Returns the names of the modules around the module `name`."""
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(len(parts))}


def as_module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Returns a module that runs a graph on the modules and parameters of `model`."""
    own = fx.Graph()  # a graph refers to its module, and would take it into copies and pickles
    own.output(own.graph_copy(graph, {}))
    return fx.GraphModule(model, own)


class Split(NamedTuple):
    """Holds the two parts of a network: body(image) -> y, and head(image, y) -> what the network returns.

    The head reads of the image nothing but its size.
    """

    body: fx.Graph
    head: fx.Graph


def split(graph: fx.Graph, cut: fx.Node) -> Split | None:
    """Cuts a graph after `cut`; returns None where more than the value of `cut` is needed later."""
    nodes = list(graph.nodes)
    at = nodes.index(cut) + 1
    earlier = set(nodes[:at])
    needed: set[fx.Node] = set()
    for node in nodes[at:]:
        for value in _earlier_values(node, cut, earlier):
            if not _is_size(value):
                return None
            needed.add(value)
    image = next(node for node in nodes if node.op == "placeholder")
    body, head = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in nodes[:at]:
        copied[node] = body.node_copy(node, copied.__getitem__)
    body.output(copied[cut])
    copied = {image: head.placeholder("image"), cut: head.placeholder("streamed")}
    for node in nodes:
        if node in needed or node not in earlier:
            copied[node] = head.node_copy(node, copied.__getitem__)
    return Split(body, head)


def _earlier_values(node: fx.Node, cut: fx.Node, earlier: set[fx.Node]) -> Iterator[fx.Node]:
    """Yields the nodes before the cut whose values the head has to have for `node`."""
    for value in node.all_input_nodes:
        if value in earlier and value is not cut:
            yield value
            if not _reads_size(value):
                yield from _earlier_values(value, cut, earlier)


def _reads_size(node: fx.Node) -> bool:
    """Says whether a node reads a property of a tensor that the image has without being computed."""
    name = node.args[1] if node.op == "call_function" and node.target is getattr else node.target
    return name in _SIZES and isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"


def _is_size(node: fx.Node) -> bool:
    """Says whether a node depends on nothing but the size of the image and on the network's own tensors."""
    if node.op == "get_attr" or _reads_size(node):
        return True
    return node.op in ("call_function", "call_method") and all(map(_is_size, node.all_input_nodes))
