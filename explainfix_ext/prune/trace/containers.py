"""What an operation returns: tensors, in tuples and dicts or alone, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx.node import map_aggregate


def each_tensor(result: Any, change: Callable[[Tensor], Any]) -> Any:
    """`result` with every tensor in it changed; the fields of torch.max and the like keep their names."""
    changed = map_aggregate(result, lambda v: cast(Any, change(v)) if isinstance(v, Tensor) else v)
    names = getattr(type(result), "__match_args__", ())
    return _Fields(changed, names) if isinstance(result, tuple) and names else changed


class _Fields(tuple):
    """A tuple whose items have names, too."""

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
    """Sizes, numbers and the like, which hold no activation."""
    if isinstance(result, (tuple, list)):
        return all(is_plain(item) for item in result)
    return result is None or isinstance(result, (bool, int, float, str, torch.dtype, torch.device))


def has_tensor(result: Any) -> bool:
    found: list[bool] = []
    map_aggregate(result, lambda v: found.append(True) if isinstance(v, Tensor) else None)
    return bool(found)
