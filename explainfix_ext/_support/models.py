"""Walks over the modules of a model, and names them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


def spatial_convolutions(model: nn.Module) -> dict[str, Any]:
    """Name -> Conv2d with a kernel larger than 1x1."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}


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
