"""Exchanges modules of a model in place; `revert` puts plain convolutions back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .fixed_conv2d import FixedConv2d


def revert(model: nn.Module, *, requires_grad: bool = False) -> nn.Module:
    """Replaces every FixedConv2d of `model` by the plain convolution that computes the same, in place.

    Its weight is a Parameter with the fixed filters (a learned 1x1 after them folded in): for tools that want
    plain modules. torch.onnx.export takes a converted model as it is, and a reverted one as any other.

    Args:
        model: any module that holds its convolutions.
        requires_grad: let the filters be learned from now on. Make the optimizer afterwards.

    Returns:
        `model`.

    Raises:
        TypeError: the model is itself a FixedConv2d: use its `to_conv2d()`.

    Example:
        >>> model = nn.Sequential(FixedConv2d(3, 8, 3, seed=0))
        >>> type(revert(model)[0]).__name__
        'Conv2d'
    """
    if isinstance(model, FixedConv2d):
        raise TypeError("model must hold its convolutions, and is one itself: use conv.to_conv2d()")
    fixed = [module for module in _unique(model) if isinstance(module, FixedConv2d)]
    swap(model, {module: module.to_conv2d(requires_grad) for module in fixed})
    return model


def _unique(model: nn.Module) -> list[nn.Module]:
    return list(model.modules())  # a list: it is changed while it is walked


def swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Puts each replacement wherever its module is; a module may be used in several places."""
    for parent in _unique(model):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
