"""Prepares a model for rules of relevance, which look at modules: folds its norms, and watches sums and products.

zennit's canonizers do this for torchvision's VGG and ResNet, by names of classes and the order of definition. Here it
is done by what the model computes, for any model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode

from explainfix_ext.nn.swap import become

from .saliency import main_output

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_SUMS = ("add", "add_", "sub", "sub_")
_PRODUCTS = ("mul", "mul_", "div", "div_")
_MEANS = ("mean", "sum", "avg_pool2d", "adaptive_avg_pool2d")
_TINY = 1e-9  # keeps a division from being one by zero


def fold_norms(model: nn.Module, x: Tensor) -> None:
    """Folds each BatchNorm into the convolution or linear layer whose output it alone takes, in place, in eval mode.

    The norm stays, with statistics and parameters by which it changes nothing: timm's have an activation, too.

    Args:
        model: runs once on x, to see what takes which output.
        x: (N, C, H, W).
    """
    made: dict[Any, nn.Module] = {}  # node of the autograd graph -> the module whose output it made

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            made[output.grad_fn] = module

    kinds = (nn.Conv2d, nn.Linear, *_NORMS)
    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    try:
        with torch.enable_grad():
            output = main_output(model(x.detach().clone().requires_grad_()))
    finally:
        for handle in handles:
            handle.remove()
    takers = _takers(output.grad_fn)
    runs = Counter(made.values())
    for node, layer in made.items():
        norm = made.get(takers[node][0]) if len(takers.get(node, [])) == 1 else None
        if norm is None or runs[layer] > 1 or runs[norm] > 1 or not _folds(layer, norm):
            continue
        fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        become({layer: fuse(layer, norm)})
        _make_neutral(norm)


def _takers(last: Any) -> dict[Any, list[Any]]:
    """Returns, for each node of the autograd graph that ends in `last`, the nodes that take its output."""
    takers: dict[Any, list[Any]] = {}
    seen, rest = {last}, [last]
    while rest:
        node = rest.pop()
        for earlier, _ in node.next_functions if node is not None else ():
            takers.setdefault(earlier, []).append(node)
            if earlier not in seen:
                seen.add(earlier)
                rest.append(earlier)
    return takers


def _folds(layer: nn.Module, norm: Any) -> bool:
    """Tells whether `layer` has a weight of its own, and `norm` is a BatchNorm with statistics and parameters."""
    own = isinstance(layer, (nn.Conv2d, nn.Linear)) and "weight" in layer._parameters
    return own and isinstance(norm, _NORMS) and norm.running_mean is not None and norm.affine


def _make_neutral(norm: Any) -> None:
    """Makes a norm return its input in eval mode."""
    with torch.no_grad():
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.zero_()


class ProportionalRules(TorchFunctionMode):
    """This mode gives relevance to the inputs of sums, means and products that are no modules, while a model runs.

    Each input gets relevance in proportion to what it adds to the result, as by zennit's rule Norm for its module Sum.
    Of a product the larger factor, or else the first, gets all of it, and the gate nothing (Arras et al. 2017).
    Outside of a `with` block of this mode autograd would give each summand the whole, and multiply by the gate.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        moving = [i for i, value in enumerate(args) if isinstance(value, Tensor) and value.requires_grad]
        if name in _PRODUCTS:
            moving = sorted(moving, key=lambda i: -args[i].numel())[:1]
        wanted = 2 if name in _SUMS else 1 if name in (*_PRODUCTS, *_MEANS) else 0
        if not wanted or len(moving) < wanted or (name.endswith("_") and 0 not in moving):
            return function(*args, **kwargs)

        def of(*tensors: Tensor) -> Tensor:
            values = [value.detach() if isinstance(value, Tensor) else value for value in args]
            for i, tensor in zip(moving, tensors, strict=True):
                values[i] = tensor
            return function(*values, **kwargs)

        return _Proportional.apply(of, name.endswith("_"), *(args[i] for i in moving))  # type: ignore[no-untyped-call]


class _Proportional(torch.autograd.Function):
    """Computes a function whose backward pass divides relevance among its tensors."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], in_place: bool, *tensors: Tensor) -> Tensor:
        ctx.function = function
        first = tensors[0].clone() if in_place else tensors[0]
        ctx.save_for_backward(first, *tensors[1:])
        if in_place:
            ctx.mark_dirty(tensors[0])
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        tensors = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            result = ctx.function(*(t.clone() for t in tensors))
        found = torch.autograd.grad(result, tensors, relevance[0] / stabilized(result.detach()))
        return None, None, *(t.detach() * gradient for t, gradient in zip(tensors, found, strict=True))


def stabilized(values: Tensor) -> Tensor:
    """Moves values away from zero, by so little that only those that are zero change in float32."""
    return values + torch.where(values < 0, -_TINY, _TINY)
