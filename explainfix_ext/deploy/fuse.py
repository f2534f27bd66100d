"""This module finds, in a traced network, what follows each convolution, and makes one step of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.nn.fixed_conv2d_same import pads_like_tensorflow
from explainfix_ext.nn.replaceable import obstacle
from explainfix_ext.ops.inference import LARGEST_WINDOW

from .alternatives import Affine, alternatives
from .choose import Choice
from .graph import add_module, module_of, shape_of
from .steps import Activation, MaxPoolStep, MeanStep, NormStep, PointwiseStep

_ADDITIONS = (operator.add, torch.add, "add")
_PRODUCTS = (operator.mul, torch.mul, "mul")
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", "relu": "relu", F.relu6: "relu6", F.silu: "silu", F.hardswish: "hardswish"
}  # fmt: skip
_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: Activation("relu"),
    nn.ReLU6: lambda m: Activation("relu6"),
    nn.LeakyReLU: lambda m: Activation("leaky_relu", m.negative_slope),
    nn.SiLU: lambda m: Activation("silu"),
    nn.Hardswish: lambda m: Activation("hardswish"),
    nn.GELU: lambda m: Activation("gelu" if m.approximate == "none" else "gelu_tanh"),
}


def fuse(module: fx.GraphModule) -> dict[str, Choice]:
    """Replaces convolutions, with what follows them, and poolings by steps, in place.

    Args:
        module: a network, as `trace` returns it.

    Returns:
        For each convolution, by its name, the steps that it can be. They are in the graph.
    """
    choices: dict[str, Choice] = {}
    for node in list(module.graph.nodes):
        called: Any = module_of(module, node)
        if isinstance(called, nn.Conv2d) and _is_known(called):
            name = str(node.target)
            choices[name] = _Chain(module, node).replace()
        elif (pool := _pool_step(node, called)) is not None:
            _call(module, node, pool, (node.args[0],))
    for node in list(module.graph.nodes):
        _open_gate(module, node)
        if isinstance(norm := module_of(module, node), nn.BatchNorm2d) and norm.running_mean is not None:
            _replace_norm(module, node, norm)
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
    return choices


def _is_known(conv: nn.Conv2d) -> bool:
    """Says whether a convolution computes what its class says, with one dilation: steps have one."""
    if getattr(conv, "levels", ()):
        return False
    return isinstance(conv, FixedConv2d) or pads_like_tensorflow(conv) or not obstacle(conv)


class _Chain:
    """Follows the values from a convolution on, as long as each is read once and a step can do what reads it."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        self._module, self._nodes = module, [node]
        self._conv: Any = module_of(module, node)
        self._affine: Affine | None = None
        self._residual: fx.Node | None = None
        self._activation = Activation()
        norm = module_of(module, self._reader())
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            self._affine = Affine.of(norm)
            self._take()
        if (other := _added(self._reader(), node=self._nodes[-1])) is not None:
            self._residual = other
            self._take()
        if (activation := activation_of(module, self._reader())) is not None:
            self._activation = activation
            self._take()

    def _reader(self) -> fx.Node | None:
        users = list(self._nodes[-1].users)
        return users[0] if len(users) == 1 else None

    def _take(self) -> None:
        self._nodes.append(next(iter(self._nodes[-1].users)))

    def replace(self) -> Choice:
        """Calls the step where the last node is: by then there is all that it reads."""
        choice = Choice(alternatives(self._conv, self._affine, self._activation))
        first, last = self._nodes[0], self._nodes[-1]
        args = (first.args[0],) if self._residual is None else (first.args[0], self._residual)
        _call(self._module, last, choice, args)
        for node in reversed(self._nodes[:-1]):
            self._module.graph.erase_node(node)
        return choice


def _replace_norm(module: fx.GraphModule, node: fx.Node, norm: nn.BatchNorm2d) -> None:
    """Makes one step of a BatchNorm and the activation after it."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    activation = activation_of(module, reader)
    if activation is None or reader is None:
        _call(module, node, NormStep(norm, Activation()), (node.args[0],))
        return
    _call(module, reader, NormStep(norm, activation), (node.args[0],))
    module.graph.erase_node(node)


def _call(module: fx.GraphModule, node: fx.Node, step: nn.Module, args: tuple[Any, ...]) -> fx.Node:
    """Puts a call of `step` in the place of a node."""
    name = add_module(module, f"step_{node.name}", step)
    with module.graph.inserting_before(node):
        new = module.graph.call_module(name, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
    return new


def _calls(node: fx.Node, functions: tuple[Any, ...]) -> bool:
    """Says whether a node calls one of these functions and methods; a module may have the name of a method."""
    return node.op in ("call_function", "call_method") and node.target in functions


def _added(reader: fx.Node | None, node: fx.Node) -> fx.Node | None:
    """Returns what `reader` adds to `node`, if that is another tensor of its shape."""
    if reader is None or not _calls(reader, _ADDITIONS) or len(reader.args) != 2 or reader.kwargs:
        return None
    other: Any = reader.args[1] if reader.args[0] is node else reader.args[0]
    same = isinstance(other, fx.Node) and other is not node and shape_of(other) == shape_of(node) is not None
    return other if same else None


def activation_of(module: fx.GraphModule, node: fx.Node | None) -> Activation | None:
    """Returns the activation that a node applies to its argument; None if it does anything else."""
    called = module_of(module, node)
    if called is not None:
        make = _MODULES.get(type(called))
        return make(called) if make else None
    if node is None or node.op not in ("call_function", "call_method") or len(node.args) != 1:
        return None
    name = _FUNCTIONS.get(node.target)
    return Activation(name) if name else None


def _pool_step(node: fx.Node, called: Any) -> nn.Module | None:
    """Returns the step that pools as a node does; None if it does anything else, or not to images."""
    pooled = node.args[0] if node.args else None
    if not isinstance(pooled, fx.Node) or len(shape_of(pooled) or ()) != 4:
        return None
    if type(called) is nn.MaxPool2d and not called.return_indices and called.dilation in (1, (1, 1)):
        step = MaxPoolStep(called)
        return step if math.prod(step.windows[0]) <= LARGEST_WINDOW else None
    one = (1, (1, 1), [1, 1])
    if isinstance(called, nn.AdaptiveAvgPool2d) and called.output_size in one:
        return MeanStep()
    if node.op == "call_function" and node.target is F.adaptive_avg_pool2d and node.args[1:] in [(o,) for o in one]:
        return MeanStep()
    kept = node.op == "call_method" and node.target == "mean" and node.kwargs == {"keepdim": True}
    axes = node.args[1] if kept and len(node.args) == 2 else None
    return MeanStep() if axes in ((2, 3), [2, 3], (-2, -1), [-2, -1]) else None


def _open_gate(module: fx.GraphModule, node: fx.Node) -> None:
    """Lets a 1x1 convolution multiply its input by a number a channel, where squeeze and excitation does that first."""
    step = module_of(module, node)
    if not isinstance(step, Choice) or not isinstance(step.steps[0], PointwiseStep):
        return
    product: Any = node.args[0]
    multiplies = isinstance(product, fx.Node) and _calls(product, _PRODUCTS)
    if not multiplies or len(product.args) != 2 or len(product.users) > 1 or product in node.args[1:]:
        return
    shapes = {arg: shape_of(arg) for arg in product.args if isinstance(arg, fx.Node)}
    whole = shape_of(product)
    gates = [arg for arg, shape in shapes.items() if whole and shape == (*whole[:2], 1, 1) != whole]
    planes = [arg for arg, shape in shapes.items() if shape == whole]
    if len(gates) == len(planes) == 1:
        node.args = (planes[0], *node.args[1:])
        node.kwargs = {"gate": gates[0]}
        step.keep(PointwiseStep)
        module.graph.erase_node(product)
