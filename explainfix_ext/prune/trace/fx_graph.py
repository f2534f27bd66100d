"""This module traces a model into a torch.fx graph that also holds the layers that run in training only."""

from __future__ import annotations

import inspect

from torch import fx, nn

from explainfix_ext._support.models import in_mode
from explainfix_ext._support.text import first_line
from explainfix_ext.memory.flatten import Tracer

from .kinds import MIXING, NORMS


class _PruneTracer(Tracer):
    """Keeps every layer that pruning may cut as one node."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (*MIXING, *NORMS, nn.LayerNorm)) or super().is_leaf_module(module, name)


def trace_graph(model: nn.Module) -> tuple[fx.Graph, bool]:
    """Traces the model in eval mode, or in training mode if more layers run then, such as auxiliary heads.

    Returns:
        The graph, and whether it has layers that run in training only.

    Raises:
        ValueError: torch.fx cannot trace the model, or each mode runs a layer that the other does not.
    """
    graphs = []
    for training in (False, True):
        try:
            with in_mode(model, training):
                graphs.append(_PruneTracer().trace(model))
        except Exception as error:  # a model may raise anything on a proxy
            if training:  # the graph of eval mode is enough
                return graphs[0], False
            raise ValueError(
                f"model cannot be traced by torch.fx ({first_line(error)}): its channels cannot be followed. "
                f'backend="torch_pruning" follows autograd instead; structured=False needs neither'
            ) from None
    modules = dict(model.named_modules())
    layers = [
        {n.target for n in graph.nodes if n.op == "call_module" and list(modules[str(n.target)].parameters())}
        for graph in graphs
    ]
    has_heads = bool(layers[1] - layers[0])
    if has_heads and layers[0] - layers[1]:
        only = [min(layers[i] - layers[1 - i]) for i in range(2)]
        raise ValueError(
            f"model must run in training what it runs in eval mode, or more: {only[0]} runs in eval mode only, "
            f"{only[1]} in training only; structured=False can prune it"
        )
    if has_heads:
        _use_eval_functions(graphs[1])
    return graphs[has_heads], has_heads


def _use_eval_functions(graph: fx.Graph) -> None:
    """Passes training=False to functions such as F.dropout: modules run in eval mode later, functions must agree."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        try:
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        except (TypeError, ValueError):  # a builtin has no signature
            continue
        if "training" in bound.arguments:
            bound.arguments["training"] = False
            node.args, node.kwargs = bound.args, bound.kwargs
