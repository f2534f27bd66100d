"""Makes modules of a model other modules, in place; `revert` makes plain convolutions of fixed ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from explainfix_ext._support.models import check_is_module

from .fixed_conv import FixedConv


def revert(model: nn.Module, *, requires_grad: bool = False) -> nn.Module:
    """Makes every FixedConv1d and FixedConv2d of `model` the plain convolution that computes the same, in place.

    Its weight is a Parameter with the fixed filters (a learned 1x1 after them folded in): for tools that want
    plain modules. torch.onnx.export takes a converted model as it is, and a reverted one as any other.

    Args:
        model: any module that holds its convolutions.
        requires_grad: let the filters be learned from now on. Make the optimizer afterwards.

    Returns:
        `model`.

    Raises:
        TypeError: the model is itself a FixedConv2d: use its `to_conv2d()`, or `to_conv1d()`.

    Examples:
        >>> model = nn.Sequential(FixedConv2d(3, 8, 3, seed=0))
        >>> type(revert(model)[0]).__name__
        'Conv2d'

        The equivalent PyTorch:

        >>> conv = FixedConv2d(3, 8, 3, seed=0)
        >>> plain = nn.Conv2d(3, 8, 3)
        >>> plain.weight, plain.bias = nn.Parameter(conv.weight, requires_grad=False), conv.bias
        >>> x = torch.randn(2, 3, 8, 8)
        >>> torch.allclose(revert(nn.Sequential(conv))(x), plain(x), atol=1e-6)
        True
    """
    check_is_module(model)
    if isinstance(model, FixedConv):
        method = "to_conv1d" if isinstance(model, nn.Conv1d) else "to_conv2d"
        raise TypeError(f"model must hold its convolutions, and is one itself: use conv.{method}()")
    make_plain(model, requires_grad=requires_grad)
    return model


def make_plain(model: nn.Module, *, requires_grad: bool = False) -> None:
    """Makes every fixed layer of `model` plain, in place, as `revert` does; the model may be one itself."""
    fixed = [module for module in model.modules() if isinstance(module, FixedConv)]
    become({module: module._to_conv(requires_grad) for module in fixed})


def become(replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Makes each module what its replacement is. It stays the same object.

    So everything that refers to it has the new layer: its parents, a list or dict beside them, partials, bound methods,
    closures, hooks, and a variable of the caller. Whoever put replacements into `_modules` would have to find those.
    """
    for module, replacement in replacements.items():
        module.__dict__ = vars(replacement)
        module.__class__ = type(replacement)  # type: ignore[assignment]
