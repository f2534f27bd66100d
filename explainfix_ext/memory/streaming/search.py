"""Finds the longest part of a network that is local, from its first layer on."""

from __future__ import annotations

from collections.abc import Container, Iterator, Set
from contextlib import contextmanager
from typing import NamedTuple

from torch import fx, nn

from explainfix_ext._support.models import eval_mode, in_mode, on_a_copy
from explainfix_ext.memory.save import save_memory
from explainfix_ext.nn.swap import make_plain

from .field import Field
from .probe import AXES, check_tiles, probe
from .split import Split, as_module, parents, split, trace

_TOLERANCE = 1e-3  # of float32, through a deep network


class Layer(NamedTuple):
    """Names a call in a network: a module's name and class, or a function's."""

    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})" if self.kind else self.name


class LocalPart(NamedTuple):
    """Says where a network is cut, and what the part before reads.

    Attributes:
        last: the last layer of the local part.
        splits: both parts, as the network is in eval mode and in training mode.
        fields: of both axes.
        stop: the first layer after that is not local, and why; empty if all are.
        layers: with weights, in the local part and in all.
    """

    last: Layer
    splits: tuple[Split, Split]
    fields: tuple[Field, Field]
    stop: str
    layers: tuple[int, int]


def find_local_part(model: nn.Module, until: str | None) -> LocalPart:
    """Finds the local part by small runs on a copy of `model`, up to the module `until`, or as far as it goes.

    Raises:
        ValueError: torch.fx cannot trace the model, `until` names no local layer whose output alone is needed
            later, or there is none.
    """
    with _plain_copy(model) as copied:
        with eval_mode(copied):
            found = _search(copied, until)
        if found.cut is None:
            raise ValueError(_why_not(found, until))
        name = found.cut.name
        splits = (_split_in_mode(copied, found.opened, name, False), _split_in_mode(copied, found.opened, name, True))
        layers = (_count_layers(as_module(copied, splits[0].body)), _count_layers(copied))
        return LocalPart(_layer_of(copied, found.cut), splits, found.fields[found.cut], found.ends, layers)


@contextmanager
def _plain_copy(model: nn.Module) -> Iterator[nn.Module]:
    """Yields a copy on the CPU with torch's own convolutions, in which each tap reads its pixel even if it is 0."""
    with on_a_copy(model) as copied:
        vars(copied).pop("forward", None)
        save_memory(copied, "off")
        make_plain(copied)
        yield copied.cpu().float().requires_grad_(False)


class _Found(NamedTuple):
    """Holds a traced network, with the modules in `opened` seen through, and the last value to cut after, if any.

    `fields` are those of all local values; `ends` names the first layer that is not local, and why.
    """

    graph: fx.Graph
    opened: frozenset[str]
    fields: dict[fx.Node, tuple[Field, Field]]
    cut: fx.Node | None
    ends: str


def _search(model: nn.Module, until: str | None) -> _Found:
    """Finds the cut. A module that is not local is opened, until what is not local has no modules within it."""
    opened = frozenset({"", *parents(until or "")})
    graph = trace(model, opened)
    while True:
        fields, stop, reason = _probe_both_axes(model, graph)
        cut = None
        for node in _candidates(graph, fields, until):
            if _same_by_tiles(model, graph, node, fields[node]):
                cut = node
                break
            stop, reason = node, "by tiles its result is another, as if it knew its place in the image"
        found = _Found(graph, opened, fields, cut, "" if stop is None else f"{_layer_of(model, stop)}: {reason}")
        inside = str(stop.target) if stop is not None and stop.op == "call_module" else None
        if inside is None or inside == until or not any(True for _ in model.get_submodule(inside).children()):
            return found
        try:
            opened |= {inside}
            graph = trace(model, opened)
        except ValueError:  # what torch.fx cannot see through stays whole
            return found


def _probe_both_axes(
    model: nn.Module, graph: fx.Graph
) -> tuple[dict[fx.Node, tuple[Field, Field]], fx.Node | None, str]:
    """Returns the fields of the values that are local along both axes, the first that is not, and why."""
    order = {node: at for at, node in enumerate(graph.nodes)}
    rows, columns = (probe(model, graph, _channels(model), axis) for axis in AXES)
    fields = {node: (rows.fields[node], columns.fields[node]) for node in rows.fields if node in columns.fields}
    first = min((rows, columns), key=lambda values: order.get(values.stop, len(order)))
    return fields, first.stop, first.reason


def _candidates(graph: fx.Graph, fields: Container[fx.Node], until: str | None) -> Iterator[fx.Node]:
    """Yields the local values that alone are needed later, the last first; of the module `until` alone, if given."""
    for node in reversed(list(graph.nodes)):
        wanted = node.op != "placeholder" if until is None else node.op == "call_module" and node.target == until
        if wanted and node in fields and split(graph, node) is not None:
            yield node


def _why_not(found: _Found, until: str | None) -> str:
    """Says why there is no cut."""
    if until is None:
        return f"model has no layer to stream: {found.ends or 'of none the output alone is needed later'}"
    calls = [node for node in found.graph.nodes if node.op == "call_module" and node.target == until]
    if not calls:
        return f"until must name a module that the model's forward calls, got {until!r}"
    if calls[-1] in found.fields and split(found.graph, calls[-1]) is None:
        return f"until must name a layer whose output alone is needed later, got {until!r}"
    return f"until must name a layer up to which all are local, got {until!r}: {found.ends}"


def _channels(model: nn.Module) -> int:
    """Returns the channels of an image."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def _same_by_tiles(model: nn.Module, graph: fx.Graph, node: fx.Node, fields: tuple[Field, Field]) -> bool:
    """Tells whether tiles give what the whole gives, along both axes."""
    part = split(graph, node)
    assert part is not None  # _candidates has seen to it
    errors = (check_tiles(model, part.body, _channels(model), fields[axis - 2], axis) for axis in AXES)
    return all(error <= _TOLERANCE for error in errors)


def _split_in_mode(model: nn.Module, opened: Set[str], name: str, training: bool) -> Split:
    """Cuts the network as it is in one mode after the value `name`."""
    with in_mode(model, training):
        graph = trace(model, opened)
        node = next((node for node in graph.nodes if node.name == name), None)
        part = None if node is None else split(graph, node)
    if part is None:
        raise ValueError(f"model in training mode needs more than the output of {name} later: name an earlier until")
    return part


def _layer_of(model: nn.Module, node: fx.Node) -> Layer:
    if node.op == "call_module":
        return Layer(str(node.target), type(model.get_submodule(str(node.target))).__name__)
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return Layer(node.name, "" if target == node.name else f"function {target}")


def _count_layers(model: nn.Module) -> int:
    """Counts the modules with parameters of their own."""
    return sum(any(True for _ in module.parameters(recurse=False)) for module in model.modules())
