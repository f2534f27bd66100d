"""This module traces a model into a torch.fx graph that also holds what runs, or is an output, in training only.

A trace is a guess: it shows what the forward does with stand-ins for tensors. So the graph is run beside the model.
Where it is another, or there is none, a run of the model is recorded instead (record.py).
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from explainfix_ext._support.models import in_mode
from explainfix_ext._support.text import first_line
from explainfix_ext.memory.flatten import Tracer

from .attributes import sizes_shown
from .inputs import Inputs, copied
from .kinds import MIXING, NORMS
from .modes import as_in_eval, as_in_training_, eval_functions, same_random_numbers, tensors_of
from .record import record
from .values import is_plain

_OTHERWISE = 'backend="torch_pruning" follows autograd instead; structured=False needs neither'


class CannotFollow(ValueError):
    """Says that torch.fx cannot show what a model does with its channels."""


class _PruneTracer(Tracer):
    """Keeps every layer that pruning may cut as one node, and takes from the example all that is no tensor."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self._inputs = inputs

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (*MIXING, *NORMS, nn.LayerNorm, nn.GroupNorm)) or super().is_leaf_module(module, name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Records reads of Parameters, and of buffers with a number for each channel, which are cut like those."""
        vector = isinstance(attr_val, Tensor) and sum(size > 1 for size in attr_val.shape) == 1
        self.proxy_buffer_attributes = vector and attr_val.is_floating_point()
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Makes a placeholder for each input. Numbers, flags, None and defaults keep their values: code reads them."""
        proxies = [self.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(len(self._inputs))]
        given = [x if is_plain(x) else proxy for x, proxy in zip(self._inputs, proxies, strict=True)]
        return root_fn, [self.root, *given]


def trace_graph(model: nn.Module, inputs: Inputs) -> fx.Graph:
    """Traces the model in eval mode, and adds to the graph what it does otherwise in training mode.

    Args:
        model: the model in eval mode.
        inputs: its positional arguments.

    Returns:
        The graph. Its output is that of eval mode, or the outputs of both modes.

    Raises:
        ValueError: the model can be neither traced nor recorded, or the graph is not what the model does in eval mode;
            or the model does not run in training mode, where it has more to do.
    """
    try:
        graph, traced = _graph_of(model, inputs, _traced), _traced
    except CannotFollow as reason:
        try:
            graph, traced = _graph_of(model, inputs, _of_a_run), _of_a_run
        except CannotFollow:
            raise reason from None
    try:
        training = traced(model, inputs, training=True)
    except Exception:  # the check of the pruned model runs in training mode, too
        return graph
    both = _joined(graph, training)
    return both if both is not None and _is_the_model_in_training(model, training, inputs) else graph


def _graph_of(model: nn.Module, inputs: Inputs, traced: Callable[..., fx.Graph]) -> fx.Graph:
    """Returns the graph of eval mode; raises CannotFollow if there is none, or if it computes something else."""
    try:
        graph = traced(model, inputs)
    except Exception as error:  # a model may raise anything on a proxy
        raise CannotFollow(
            f"model cannot be traced by torch.fx ({first_line(error)}): its channels cannot be followed. {_OTHERWISE}"
        ) from None
    if where := _where_it_differs(model, graph, inputs):
        raise CannotFollow(
            f"the graph that torch.fx traced is not the model: {where}. Its forward reads something that tracing does "
            f"not see, such as the class or the values of a tensor. {_OTHERWISE}"
        )
    return graph


def _of_a_run(model: nn.Module, inputs: Inputs, training: bool = False) -> fx.Graph:
    """Records what the model does; in training mode what a copy does, with the norms and functions of eval mode."""
    model = as_in_training_(copy.deepcopy(model)) if training else model
    with eval_functions():
        return _with_functions_of_eval(record(model, inputs, _PruneTracer(inputs).is_leaf_module))


def _traced(model: nn.Module, inputs: Inputs, training: bool = False) -> fx.Graph:
    tracer = _PruneTracer(inputs)
    with in_mode(model, training), sizes_shown(model, tracer.is_leaf_module, tracer):
        return _with_functions_of_eval(tracer.trace(model))


def _with_functions_of_eval(graph: fx.Graph) -> fx.Graph:
    for node in graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = as_in_eval(node.target, node.args, node.kwargs)
    return graph


def _joined(graph: fx.Graph, other: fx.Graph) -> fx.Graph | None:
    """Returns a graph that computes both, and what they share once; None if `other` adds nothing."""
    both = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    result = both.graph_copy(graph, nodes)
    known: dict[tuple[Any, ...], list[fx.Node]] = defaultdict(list)
    for node in both.nodes:
        known[_key(node, node.args, node.kwargs)].append(node)
    there: dict[fx.Node, fx.Node] = {}
    for node in other.nodes:
        args, kwargs = (map_arg(a, there.__getitem__) for a in (node.args, node.kwargs))
        if node.op == "output":
            adds = len(both.nodes) > len(nodes) or repr(args[0]) != repr(result)
            both.output((result, args[0]))
            return both if adds else None
        same = known[_key(node, args, kwargs)]
        there[node] = same.pop(0) if same else both.node_copy(node, there.__getitem__)
    return None


def _key(node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Returns what two nodes of a graph have in common if they compute the same; nodes are told by their names."""
    return node.op, node.target, repr(args), repr(kwargs)


def _is_the_model_in_training(model: nn.Module, graph: fx.Graph, inputs: Inputs) -> bool:
    trained = as_in_training_(copy.deepcopy(model))
    with eval_functions():
        try:
            trained(*copied(inputs))
        except Exception as error:  # the model did run in eval mode
            raise ValueError(
                f"example_inputs must be fit for training, too, where the model does more: {first_line(error)}"
            ) from error
        return not _where_it_differs(trained, graph, inputs)


@torch.no_grad()
def _where_it_differs(model: nn.Module, graph: fx.Graph, inputs: Inputs) -> str:
    """Says where the graph computes something else than the model does for these inputs; empty if nowhere."""
    names = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    expected = _recorded(model, names, model, inputs)
    runner = _Runner(model, graph=graph)
    try:
        found = _recorded(model, names, runner.run, inputs)
    except Exception as error:  # what runs in the model need not run in a wrong graph
        return f"{runner.now} of the graph does not run ({first_line(error)})"
    for (name, values), (other, others) in zip(expected, found, strict=False):
        if name != other or not _alike(values, others):
            return f"they part at {name or 'the output'}"
    return "" if len(expected) == len(found) else "the graph runs other layers"


class _Runner(fx.Interpreter):
    """Notes which operation runs."""

    now = ""

    def run_node(self, node: fx.Node) -> Any:
        self.now = node.name
        return super().run_node(node)


def _recorded(model: nn.Module, names: set[str], run: Callable[..., Any], inputs: Inputs) -> list[tuple[str, Any]]:
    """Runs a model or its graph; returns the modules that ran in turn, and the output as "", with sizes and norms."""
    seen: list[tuple[str, Any]] = []

    def note(name: str, result: Any) -> None:
        seen.append((name, [(t.shape, t.double().norm().item()) for t in tensors_of(result)]))

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, result: note(name, result)

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        with same_random_numbers():
            note("", run(*copied(inputs)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _alike(a: list[tuple[Any, float]], b: list[tuple[Any, float]]) -> bool:
    """Says whether sizes are equal, and norms up to rounding."""
    if [shape for shape, _ in a] != [shape for shape, _ in b]:
        return False
    norms = [(x, y) for (_, x), (_, y) in zip(a, b, strict=True)]
    return all(x == y or not math.isfinite(x + y) or abs(x - y) <= 1e-4 * max(x, y) for x, y in norms)
