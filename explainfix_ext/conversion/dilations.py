"""Says which dilations `convert` gives to which layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from explainfix_ext._support.models import is_spatial
from explainfix_ext.nn.levels import check_dilations


def dilations_by_name(model: nn.Module, dilations: Any) -> Callable[[str], Sequence[int] | None]:
    """Makes a function that returns the dilations of the layer of that name; None leaves its own.

    Raises:
        ValueError: dilations are none, or a glob matches no spatial Conv2d: most likely it is misspelt.
    """
    by_glob = dilations if isinstance(dilations, dict) else {} if dilations is None else {"*": dilations}
    names = [name for name, module in model.named_modules() if is_spatial(module, (nn.Conv2d,))]
    for glob, numbers in by_glob.items():
        check_dilations(numbers)
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"dilations must have globs that match a spatial Conv2d, got {glob!r}")

    def of(name: str) -> Sequence[int] | None:
        return next((numbers for glob, numbers in by_glob.items() if fnmatchcase(name, glob)), None)

    return of
