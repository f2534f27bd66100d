"""A ComposedWeight is what `FixedConv2d.weight` returns: a tensor made for its reader, which changes no filter."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ComposedWeight(Tensor):
    """This tensor is as any other, but warns, once a process, where it is changed in place: that changes no filter.

    Whatever is computed from it is a plain tensor, as with nn.Parameter. To be one itself, it gives up its class.
    Give a function that torch.compile makes `weight.detach()`: where it takes a subclass of Tensor, torch 2.14 raises
    TypeError at its first call.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Tensor:
        part = super().__getitem__(index)
        return part.as_subclass(ComposedWeight) if part._is_view() else part

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        if requires_grad and not self.requires_grad:
            _warn()
        return super().requires_grad_(requires_grad)

    def detach(self) -> Tensor:
        """Returns a plain tensor. nn.Parameter(conv.weight) calls this, and wants its argument's class."""
        self.__class__ = Tensor  # type: ignore[assignment]
        return self.detach()

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.as_subclass(Tensor).__deepcopy__(memo)  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


@functools.cache
def _warn() -> None:
    warnings.warn(
        "the weight of a FixedConv2d is composed at each read, so that changing it in place changes nothing: assign "
        "conv.bank = FilterBank.from_weight(weight), or revert(model) to learn its weights",
        stacklevel=3,
    )


def _warned(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)

    @functools.wraps(method)
    def changed(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        _warn()
        return method(self, *args, **kwargs)

    return changed


def _warned_setter(name: str) -> property:
    """Makes `name`, which a tensor lets its reader set, warn of that. What `data` returns is changed in place, too."""
    attribute: Any = getattr(Tensor, name)

    def get(self: Tensor) -> Any:
        value = attribute.__get__(self)
        return value.as_subclass(ComposedWeight) if name == "data" else value

    def put(self: Tensor, value: Any) -> None:
        if value is not False:
            _warn()
        attribute.__set__(self, value)

    return property(get, put)


_OTHERS = ("requires_grad_", "detach_", "share_memory_")  # of the names that end in "_"
for _name in dir(Tensor):
    _in_place = _name.endswith("_") and not _name.startswith("_") and _name not in _OTHERS
    if _in_place or _name in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"):
        setattr(ComposedWeight, _name, _warned(_name))
for _name in ("data", "requires_grad"):
    setattr(ComposedWeight, _name, _warned_setter(_name))
