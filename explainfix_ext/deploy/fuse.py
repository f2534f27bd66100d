"""Finds, in a traced network, what follows each convolution, and makes one step of it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from explainfix_ext.nn.fixed_conv2d import FixedConv2d

from .graph import shape_of
from .steps import Activation, Affine, FixedStep, LearnedStep, MaxPoolStep, PointwiseStep, Step

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", "relu": "relu", "relu_": "relu", F.relu6: "relu6",
    F.silu: "silu", F.hardswish: "hardswish",
}  # fmt: skip
_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: Activation("relu"),
    nn.ReLU6: lambda m: Activation("relu6"),
    nn.LeakyReLU: lambda m: Activation("leaky_relu", m.negative_slope),
    nn.SiLU: lambda m: Activation("silu"),
    nn.Hardswish: lambda m: Activation("hardswish"),
    nn.GELU: lambda m: Activation("gelu" if m.approximate == "none" else "gelu_tanh"),
}



def fuse(graph: fx.GraphModule) -> fx.GraphModule:
    """Replaces each convolution, and what follows it, by a step, in place. The nodes must know their tensors' shapes.

    Args:
        graph: a network in eval mode, traced on shapes (`torch.fx.passes.shape_prop`).
    """
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.Conv2d):
            _Chain(graph, node).replace()
        elif node.op == "call_module" and (pool := pool_step(graph.get_submodule(node.target))) is not None:
            graph.set_submodule(node.target, pool)
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return graph


class _Chain:
    """Holds a convolution and the nodes after it that its step does, too."""

    def __init__(self, graph: fx.GraphModule, node: fx.Node) -> None:
        self._graph, self._conv_node, self._last = graph, node, node
        self._conv: Any = graph.get_submodule(node.target)
        self._affine: Affine | None = None
        self._residual: fx.Node | None = None
        self._activation = Activation()
        self._follow()

    def _follow(self) -> None:
        norm = self._next_module()
        if isinstance(norm, nn.BatchNorm2d) and is_plain_norm(norm):
            self._affine = Affine.of(norm)
            self._take()
        user = self._only_user()
        if user is not None and user.target in _ADDITIONS and (other := self._other_operand(user)) is not None:
            self._residual = other
            self._take()
        user = self._only_user()
        if user is not None and (activation := activation_of(self._graph, user)) is not None:
            self._activation = activation
            self._take()

    def _only_user(self) -> fx.Node | None:
        return next(iter(self._last.users)) if len(self._last.users) == 1 else None

    def _next_module(self) -> nn.Module | None:
        user = self._only_user()
        return self._graph.get_submodule(str(user.target)) if user is not None and user.op == "call_module" else None

    def _take(self) -> None:
        user = self._only_user()
        assert user is not None
        self._last = user

    def _other_operand(self, user: fx.Node) -> fx.Node | None:
        """Returns what is added to the convolution's result, if it is a tensor of the same shape, made before it."""
        if len(user.args) != 2 or user.kwargs or not all(isinstance(a, fx.Node) for a in user.args):
            return None
        other = user.args[1] if user.args[0] is self._last else user.args[0]
        same = other is not self._last and shape_of(other) == shape_of(self._last) is not None
        return other if same else None

    def replace(self) -> None:
        """Puts the steps in the place of the last node."""
        conv, graph = self._conv, self._graph
        dtype = next((t.dtype for t in (conv.bias, *conv.parameters()) if t is not None), torch.float32)
        (x,) = self._conv_node.args
        with graph.graph.inserting_before(self._last):
            if isinstance(conv, FixedConv2d):
                *first, step = fixed_steps(conv, self._affine, self._activation)
                for i, before in enumerate(first):
                    x = self._insert(before, f"filter_{i}", x)
            else:
                step = learned_step(conv, self._affine, self._activation)
            new = self._insert(step, "step", x, self._residual)
        new.meta = self._last.meta
        self._last.replace_all_uses_with(new)
        node = self._last
        while node is not None:
            before = None if node is self._conv_node else self._previous(node)
            graph.graph.erase_node(node)
            node = before

    def _previous(self, node: fx.Node) -> fx.Node:
        return next(a for a in node.all_input_nodes if a is not self._residual)

    def _insert(self, step: Step, name: str, x: Any, residual: fx.Node | None = None) -> fx.Node:
        name = f"{self._conv_node.name}_{name}"
        self._graph.add_submodule(name, step)
        return self._graph.graph.call_module(name, (x,) if residual is None else (x, residual))


def activation_of(graph: fx.GraphModule, node: fx.Node) -> Activation | None:
    """Returns the activation that a node applies to its only argument; None if it does anything else."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        make = _MODULES.get(type(module))
        return make(module) if make else None
    if node.op not in ("call_function", "call_method") or len(node.args) != 1 or node.kwargs.get("inplace", False):
        return None
    name = _FUNCTIONS.get(node.target)
    return Activation(name) if name else None


def pool_step(module: nn.Module) -> MaxPoolStep | None:
    """Makes the step of a max pooling, if there is one for it."""
    if type(module) is not nn.MaxPool2d or module.return_indices or module.dilation not in (1, (1, 1)):
        return None
    return MaxPoolStep(module)


def is_plain_norm(norm: nn.BatchNorm2d) -> bool:
    """Says whether a BatchNorm in eval mode is a scale and a bias."""
    return norm.running_mean is not None and norm.running_var is not None


def learned_step(conv: nn.Conv2d, affine: Affine | None, activation: Activation) -> Step:
    """Makes the step of a learned convolution, the BatchNorm folded into its weight and bias."""
    weight, bias = fold(conv.weight, conv.bias, affine)
    pad = conv.padding in (0, (0, 0), "valid")
    same_stride = conv.stride[0] == conv.stride[1]
    if conv.kernel_size == (1, 1) and conv.groups == 1 and pad and same_stride and type(conv) is nn.Conv2d:
        return PointwiseStep(weight.flatten(1), bias, conv.stride[0], activation)
    return LearnedStep(weight, bias, conv, activation)


def fixed_steps(conv: FixedConv2d, affine: Affine | None, activation: Activation) -> list[Step]:
    """Makes the steps of a fixed convolution: of its filters, and of the learned 1x1 after them, if it has one."""
    if conv.pointwise is None:
        dtype = conv._held.dtype
        scale = None if affine is None else affine.scale
        bias = None if conv.bias is None else conv.bias.detach().double()
        if affine is not None:
            bias = affine.bias if bias is None else bias * affine.scale + affine.bias
        return [FixedStep(conv, _cast(scale, dtype), _cast(bias, dtype), activation)]
    weight, bias = fold(conv.pointwise, conv.bias, affine)
    return [FixedStep(conv, None, None, Activation()), PointwiseStep(weight.flatten(1), bias, 1, activation)]


def fold(weight: Tensor, bias: Tensor | None, affine: Affine | None) -> tuple[Tensor, Tensor | None]:
    """Multiplies a BatchNorm into a weight (O, ...) and a bias, in float64. Subnormal numbers become zero."""
    dtype, weight = weight.dtype, weight.detach().double()
    bias = None if bias is None else bias.detach().double()
    if affine is not None:
        weight = weight * affine.scale.view(-1, *[1] * (weight.ndim - 1))
        bias = affine.bias if bias is None else bias * affine.scale + affine.bias
    cast = _cast(weight, dtype)
    assert cast is not None
    return cast, _cast(bias, dtype)


def _cast(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if t is None:
        return None
    t = t.to(dtype)
    return torch.where(t.abs() < torch.finfo(dtype).tiny, 0, t).contiguous()
