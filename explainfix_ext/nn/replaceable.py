"""This module says which layers a fixed one can replace, and why it cannot replace another."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from explainfix_ext._support.models import class_name

REPLACEABLE = (nn.Conv1d, nn.Conv2d)
CAN_BE_FIXED = "Conv2d or Conv1d"

# Full name of a subclass of Conv2d that overrides forward -> the subclass of FixedConv2d that computes the same. Names,
# so that the library need not be installed. A module that defines such a subclass adds it (see fixed_conv2d_same.py).
REPLACEMENTS: dict[str, Any] = {}


def obstacle(module: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = REPLACEABLE) -> str:
    """Returns why a fixed layer cannot replace this one, which should be of `kinds`; "" if it can."""
    if not isinstance(module, REPLACEABLE) or not isinstance(module, kinds):
        return f"spatial, still learned: only a {CAN_BE_FIXED} can be fixed"
    if "_saving" in vars(module):
        return 'changed by save_memory: call save_memory(model, "off"), then convert'
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: run the model once, then convert"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "its weight is parametrized"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed (weight_norm or pruning hooks?): remove that first"
    if not weight.is_floating_point():
        return f"its dtype is {weight.dtype}".replace("torch.", "")
    patched = {"forward", "_conv_forward", "__call__"} & vars(module).keys()
    if patched:
        return f"its {patched.pop()} was replaced on the instance"
    if class_name(module) not in REPLACEMENTS and (overridden := _overridden(type(module))):
        return f"{type(module).__name__} overrides {overridden}, and explainfix_ext does not know how"
    if not _has_plain_layout(type(module)):
        return f"{type(module).__name__} has __slots__"
    return ""


def _overridden(cls: type[nn.Module]) -> str:
    """Returns a method of `cls` that may compute something else than its plain class; "" if there is none."""
    names = ("forward", "_conv_forward", "__call__", "_call_impl", "_wrapped_call_impl", "__getattr__")
    plain = _plain_of(cls)
    return next((name for name in names if getattr(cls, name) is not getattr(plain, name)), "")


def _plain_of(cls: type[nn.Module]) -> type[nn.Module]:
    return next(plain for plain in REPLACEABLE if issubclass(cls, plain))


def _has_plain_layout(cls: type[nn.Module]) -> bool:
    """Tells whether an object of `cls` can become a fixed layer: Python exchanges classes of one layout only."""
    try:
        object.__new__(cls).__class__ = _plain_of(cls)
    except TypeError:
        return False
    return True
