"""This module walks over the layers of a model: it finds, names and chooses them, and switches their mode."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .text import shown


def check_is_module(model: object) -> None:
    """Raises TypeError, of one line, unless `model` is an nn.Module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {shown(model)}")


def check_has_tensors(name: str, inputs: object) -> None:
    """Raises TypeError, of one line, if `inputs`, of argument `name`, hold no tensor, as where a shape was given."""
    leaves = tree_leaves(inputs)
    if leaves and not any(isinstance(leaf, Tensor) for leaf in leaves):
        shape = all(isinstance(leaf, int) for leaf in leaves) and len(leaves) > 1
        hint = f"; torch.zeros{tuple(leaves)} has that shape" if shape else ""
        raise TypeError(f"{name} must be a tensor, got {shown(inputs)}{hint}")


def is_spatial(module: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d)) -> bool:
    """Tells whether a module is of one of `kinds` and its kernel is larger than 1x1: only such filters are spatial."""
    conv: Any = module
    if not isinstance(module, kinds) or max(conv.kernel_size) == 1:
        return False
    # One filter in all, of a Conv1d, slides over channels: the gate of ECA (Wang et al. 2020), which has no space.
    return not isinstance(module, nn.Conv1d) or conv.in_channels * conv.out_channels > 1


def spatial_convolutions(model: nn.Module) -> dict[str, Any]:
    """Returns the spatial Conv1d and Conv2d layers of a model, subclasses included: name -> layer, in their order.

    Raises:
        TypeError: `model` is no module.
    """
    check_is_module(model)
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


def detached_copy(model: nn.Module) -> nn.Module:
    """Returns a deep copy of a model.

    What a model has kept of an earlier call, such as `self.features = y`, is part of a graph that cannot be copied, and
    is detached.
    """
    kept = [leaf for module in model.modules() for leaf in tree_leaves(vars(module))]
    return copy.deepcopy(model, {id(t): t.detach() for t in kept if isinstance(t, Tensor) and not t.is_leaf})


@contextmanager
def on_a_copy(model: nn.Module) -> Iterator[nn.Module]:
    """Yields a `detached_copy` of a model for a `with` block, which may run it; all random generators are put back."""
    gpus = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(gpus):
        try:
            yield detached_copy(model)
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


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


def attributes_with_parameters(model: nn.Module) -> dict[nn.Parameter, str]:
    """Finds Parameters that an attribute of a module refers to without being registered: -> the attribute's name.

    Lists, dicts, partials, closures, bound methods and modules that are not registered are looked into.
    """
    found: dict[nn.Parameter, str] = {}
    seen = {id(module) for module in model.modules()}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in ("_parameters", "_modules"):
                for parameter in _parameters_in(value, seen):
                    found.setdefault(parameter, f"{name}.{attribute}".lstrip("."))
    return found


def _parameters_in(value: Any, seen: set[int]) -> Iterator[nn.Parameter]:
    if isinstance(value, nn.Parameter):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        for part in _parts(value):
            yield from _parameters_in(part, seen)


def _parts(value: Any) -> Iterable[Any]:
    """Returns what a container or function refers to; nothing for other objects, such as an optimizer."""
    if isinstance(value, (nn.Module, SimpleNamespace)):
        return vars(value).values()
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, MethodType):
        return (value.__self__,)
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        return (value.__defaults__, value.__kwdefaults__, *cells)
    return ()
