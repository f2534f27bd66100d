"""This module holds Value, a tensor of the network with the ids of its channels, and small questions about values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx.node import map_aggregate


@dataclass(frozen=True)
class Value:
    """Holds a tensor that the network computes, and the id of the channel of each of its elements.

    Attributes:
        tensor: the numbers.
        ids: int64, with as many axes as `tensor`, of size 1 along the axes where the id does not change. None if the
            tensor has no channels, such as a mask or an index.
        held: why none of its channels can go; empty if they may. A held value has a single id.
    """

    tensor: Tensor
    ids: Tensor | None
    held: str = ""

    def axes(self) -> list[int]:
        """Returns the axes along which ids change."""
        return [] if self.ids is None else [axis for axis, size in enumerate(self.ids.shape) if size > 1]

    def along(self, axis: int) -> Tensor:
        """Returns the ids along `axis`, which must be the only one where they change."""
        assert self.ids is not None
        return self.ids.reshape(-1).expand(self.tensor.shape[axis])

    def spread(self) -> Tensor:
        """Returns the id of every element, as float64, so that any operation that moves elements accepts them."""
        assert self.ids is not None
        return self.ids.double().expand(self.tensor.shape).contiguous()


def compact(ids: Tensor) -> Tensor:
    """Cuts every axis along which the ids do not change to size 1."""
    ids = ids.long()
    for axis in range(ids.ndim):
        first = ids.narrow(axis, 0, 1) if ids.shape[axis] else ids
        if bool((ids == first).all()):
            ids = first
    return ids


def each_tensor(result: Any, change: Callable[[Tensor], Any]) -> Any:
    """Applies `change` to every tensor in `result`; the named fields of torch.max and the like keep their names."""
    changed = map_aggregate(result, lambda v: cast(Any, change(v)) if isinstance(v, Tensor) else v)
    names = getattr(type(result), "__match_args__", ())
    return _Fields(changed, names) if isinstance(result, tuple) and names else changed


class _Fields(tuple):
    """Lets the items of a tuple also be read as attributes."""

    names: tuple[str, ...]

    def __new__(cls, items: Any, names: tuple[str, ...]) -> _Fields:
        made = super().__new__(cls, items)
        made.names = names
        return made

    def __getattr__(self, name: str) -> Any:
        if name not in self.names:
            raise AttributeError(name)
        return self[self.names.index(name)]


def is_plain(result: Any) -> bool:
    """Says whether `result` consists of sizes, numbers and the like, which hold no activation."""
    if isinstance(result, (tuple, list)):
        return all(is_plain(item) for item in result)
    return result is None or isinstance(result, (bool, int, float, str, torch.dtype, torch.device))


def has_tensor(result: Any) -> bool:
    found: list[bool] = []
    map_aggregate(result, lambda v: found.append(True) if isinstance(v, Tensor) else None)
    return bool(found)
