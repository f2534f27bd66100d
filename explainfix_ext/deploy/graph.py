"""Traces a network into a graph in which every value has a shape, nothing is done in place, and nothing does nothing."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from explainfix_ext._support.text import first_line
from explainfix_ext.memory.flatten import Tracer

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUT_FUNCTIONS = ("dropout", "dropout2d", "alpha_dropout", "stochastic_depth")  # by name: some are torchvision's


def trace(model: nn.Module, example: tuple[Any, ...]) -> fx.GraphModule:
    """Traces a network in eval mode.

    Args:
        model: the network, which becomes part of the result.
        example: its positional arguments.

    Raises:
        ValueError: torch.fx cannot trace it.
    """
    try:
        module = fx.GraphModule(model, Tracer().trace(model), type(model).__name__)
    except Exception as error:  # a model may raise anything on a proxy
        raise ValueError(f"torch.fx cannot trace it: {first_line(error)}") from error
    for node in list(module.graph.nodes):
        if node.op == "call_module":
            _unfold_norm(module, node)
    for node in list(module.graph.nodes):
        _out_of_place(module, node)
        if _does_nothing(module, node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    ShapeProp(module).propagate(*example)
    return module


def shape_of(node: fx.Node) -> torch.Size | None:
    """Returns the shape of a node's tensor; None if it is no single tensor."""
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def _unfold_norm(module: fx.GraphModule, node: fx.Node) -> None:
    """Makes two nodes of timm's BatchNorm with an activation inside."""
    norm = module.get_submodule(str(node.target))
    if not any(cls.__name__ == "BatchNormAct2d" for cls in type(norm).__mro__):
        return
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, affine=norm.affine, device="meta")
    plain.__dict__.update({k: v for k, v in vars(norm).items() if k in ("_parameters", "_buffers", "training")})
    module.add_submodule(f"{node.target}_norm", plain)
    module.add_submodule(f"{node.target}_act", norm.act)
    with module.graph.inserting_after(node):
        normed = module.graph.call_module(f"{node.target}_norm", node.args)
    with module.graph.inserting_after(normed):
        activated = module.graph.call_module(f"{node.target}_act", (normed,))
    node.replace_all_uses_with(activated)
    module.graph.erase_node(node)


def _out_of_place(module: fx.GraphModule, node: fx.Node) -> None:
    """Gives an in-place operation a result of its own, which later users of its argument get, too."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        if not getattr(called, "inplace", False):
            return
        called = copy.copy(called)
        called.inplace = False
        module.add_submodule(str(node.target), called)
    elif node.op == "call_function" and node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_function" and node.target in _IN_PLACE:
        node.target = _IN_PLACE[node.target]
    elif node.op == "call_method" and _is_in_place(str(node.target)):
        node.target = str(node.target)[:-1]
    else:
        return
    changed = node.args[0]
    for user in list(changed.users):
        if user > node:
            user.replace_input_with(changed, node)


_IN_PLACE = {
    operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub, torch.relu_: torch.relu
}  # fmt: skip


def _is_in_place(method: str) -> bool:
    return method.endswith("_") and not method.startswith("_") and hasattr(Tensor, method[:-1])


def _does_nothing(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return isinstance(called, (nn.Identity, *_DROPOUTS)) and len(node.args) == 1
    if node.op == "call_function":
        return getattr(node.target, "__name__", "") in _DROPOUT_FUNCTIONS and not node.kwargs.get("training", True)
    return node.op == "call_method" and node.target == "contiguous" and not node.kwargs and len(node.args) == 1
