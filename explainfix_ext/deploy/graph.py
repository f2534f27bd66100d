"""This module traces a network into a graph whose values have shapes, where nothing is in place and nothing idle."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from explainfix_ext._support.text import first_line
from explainfix_ext.memory.flatten import Tracer
from explainfix_ext.nn.fixed_conv2d_same import pads_like_tensorflow

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUT_FUNCTIONS = ("dropout", "dropout2d", "alpha_dropout", "stochastic_depth")  # by name: one is torchvision's
_OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub, torch.relu_: torch.relu
}  # fmt: skip


class _Tracer(Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        same = isinstance(module, nn.Conv2d) and pads_like_tensorflow(module)
        return same or super().is_leaf_module(module, name)


class _Shapes(fx.Interpreter):
    """Runs a graph, and notes the shape of each tensor that depends on the inputs: a constant's follows no batch."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["varies"] = n.op == "placeholder" or any(value.meta["varies"] for value in n.all_input_nodes)
        if isinstance(result, Tensor) and n.meta["varies"]:
            n.meta["shape"] = result.shape
        return result


def trace(model: nn.Module, example: tuple[Any, ...]) -> fx.GraphModule:
    """Traces a network in eval mode, whose modules become the result's.

    Args:
        model: the network.
        example: its positional arguments, on which each value's shape is found.

    Raises:
        ValueError: torch.fx cannot trace it.
    """
    try:
        module = fx.GraphModule(model, _Tracer().trace(model), type(model).__name__)
    except Exception as error:  # a model may raise anything on a proxy
        raise ValueError(f"torch.fx cannot trace it: {first_line(error)}") from error
    for node in list(module.graph.nodes):
        if node.op == "call_module":
            _unfold_norm(module, node)
    for position, node in enumerate(list(module.graph.nodes)):
        node.meta["position"] = position
    for node in list(module.graph.nodes):
        _out_of_place(module, node)
        if _is_idle(module, node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    _Shapes(module).run(*example)
    return module


def shape_of(node: fx.Node) -> torch.Size | None:
    """Returns the shape of a node's tensor; None if it is no single tensor, or a constant."""
    return node.meta.get("shape")


def module_of(module: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """Returns the module that a node calls; None if it calls none."""
    return module.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def add_module(module: fx.GraphModule, name: str, added: nn.Module) -> str:
    """Adds a module under a name that nothing has yet, and returns that."""
    while hasattr(module, name):
        name += "_"
    module.add_submodule(name, added)
    return name


def _unfold_norm(module: fx.GraphModule, node: fx.Node) -> None:
    """Makes two nodes of timm's BatchNorm with an activation inside."""
    norm: Any = module_of(module, node)
    if not any(cls.__name__ == "BatchNormAct2d" for cls in type(norm).__mro__):
        return
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, affine=norm.affine, device="meta").eval()
    plain._parameters, plain._buffers = norm._parameters, norm._buffers
    with module.graph.inserting_after(node):
        normed = module.graph.call_module(add_module(module, f"{node.name}_norm", plain), node.args)
    with module.graph.inserting_after(normed):
        activated = module.graph.call_module(add_module(module, f"{node.name}_act", norm.act), (normed,))
    node.replace_all_uses_with(activated)
    module.graph.erase_node(node)


def _out_of_place(module: fx.GraphModule, node: fx.Node) -> None:
    """Gives an in-place operation a result of its own, which those that use its argument later get, too."""
    called: Any = module_of(module, node)
    if called is not None:
        if not getattr(called, "inplace", False):
            return
        called = copy.copy(called)  # others may call the module, too
        called.inplace = False
        node.target = add_module(module, f"{node.name}_apart", called)
    elif node.op == "call_function" and node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_function" and node.target in _OUT_OF_PLACE:
        node.target = _OUT_OF_PLACE[node.target]
    elif node.op == "call_method" and _is_in_place(str(node.target)):
        node.target = str(node.target)[:-1]
    else:
        return
    changed: Any = node.args[0]
    for user in list(changed.users):
        if user.meta["position"] > node.meta["position"]:
            user.replace_input_with(changed, node)


def _is_in_place(method: str) -> bool:
    return method.endswith("_") and not method.endswith("__") and hasattr(Tensor, method[:-1])


def _is_idle(module: fx.GraphModule, node: fx.Node) -> bool:
    """Says whether a node returns its argument, in eval mode."""
    called = module_of(module, node)
    if called is not None:
        return isinstance(called, (nn.Identity, *_DROPOUTS)) and len(node.args) == 1
    if node.op == "call_function" and getattr(node.target, "__name__", "") in _DROPOUT_FUNCTIONS:
        return node.kwargs.get("training", node.args[-1]) is False
    return False
