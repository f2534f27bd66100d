"""Walks over the modules of a model, and names them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn


def is_spatial(module: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,)) -> bool:
    """Says whether a module is a convolution of one of `kinds` whose kernel is larger than 1x1."""
    return isinstance(module, kinds) and max(cast(Any, module).kernel_size) > 1


def spatial_convolutions(model: nn.Module) -> dict[str, Any]:
    """Returns name -> module for every Conv2d with a kernel larger than 1x1."""
    return {name: module for name, module in model.named_modules() if is_spatial(module)}


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    return in_mode(model, False)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """In training or eval mode; afterwards every module in its own again."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def globs(patterns: str | Iterable[str] | None) -> list[str]:
    """What `include` and `exclude` take, as a list."""
    return [patterns] if isinstance(patterns, str) else list(patterns or [])


def left_out(name: str, include: list[str], exclude: list[str]) -> str:
    """Why the layer's name is not chosen; empty if it is."""
    if not any(fnmatchcase(name, glob) for glob in include):
        return "not included"
    return "excluded" if any(fnmatchcase(name, glob) for glob in exclude) else ""
