"""This module walks over the layers of a model: it finds, names and chooses them, and switches their mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn


def is_spatial(module: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,)) -> bool:
    """Tells whether a module is of one of `kinds` and its kernel is larger than 1x1: only such filters are spatial."""
    return isinstance(module, kinds) and max(cast(Any, module).kernel_size) > 1


def spatial_convolutions(model: nn.Module) -> dict[str, Any]:
    """Returns the spatial Conv2d layers of a model, subclasses included: name -> layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if is_spatial(module)}


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Puts a model into eval mode for a `with` block; every module gets its own mode back."""
    return in_mode(model, training=False)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Puts a model into training or eval mode for a `with` block; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def class_name(module: nn.Module) -> str:
    """Returns the full name of a module's class, such as "torch.nn.modules.conv.Conv2d"."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def globs(patterns: str | Iterable[str] | None) -> list[str]:
    """Returns the patterns of an `include` or `exclude` argument as a list."""
    return [patterns] if isinstance(patterns, str) else list(patterns or [])


def left_out(name: str, include: list[str], exclude: list[str]) -> str:
    """Returns why a layer of this name is not chosen: "not included" or "excluded"; "" if it is chosen."""
    if not any(fnmatchcase(name, glob) for glob in include):
        return "not included"
    return "excluded" if any(fnmatchcase(name, glob) for glob in exclude) else ""
