"""Counts what a training step keeps for its backward pass, and what is alive at any time."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .regions import HARMLESS


@dataclass
class Usage:
    """Of one training step. Bytes; parameters, buffers, filters and inputs are not counted.

    Attributes:
        kept: by (layer, its class): storages that are kept for the backward pass, each counted once.
        peak: the most that was alive at once: activations and gradients, those of the parameters included.
        timeline: what was alive after each operation.
        forward: how many of these belong to the forward pass.
    """

    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    peak: int = 0
    timeline: list[int] = field(default_factory=list)
    forward: int = 0

    @property
    def kept_bytes(self) -> int:
        """Sum over `kept`."""
        return sum(self.kept.values())


class _Living(TorchDispatchMode):
    """The bytes of the storages that operations have made and that are still alive. What an operation allocates and
    frees inside is not seen."""

    def __init__(self, usage: Usage) -> None:
        super().__init__()
        self.usage = usage
        self.sizes: dict[int, int] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), {id_of(t) for t in tree_leaves(args) if isinstance(t, Tensor)})
        self.usage.timeline.append(self.bytes)
        return result

    def _add(self, storage: torch.UntypedStorage, arguments: set[int]) -> None:
        key = storage._cdata
        if key in self.sizes or key in arguments:
            return
        self.sizes[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.usage.peak = max(self.usage.peak, self.bytes)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)


def id_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _layer_names(model: nn.Module) -> Iterator[Callable[[], tuple[str, str]]]:
    """Gives a function that tells which layer's forward is running: (name, class)."""
    names = {module: name for name, module in model.named_modules()}
    stack: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    def current() -> tuple[str, str]:
        module = stack[-1] if stack else model
        return names.get(module, ""), type(module).__name__.removeprefix("Memory")

    everywhere = torch.nn.modules.module
    HARMLESS.update((enter, leave))
    hooks = [
        everywhere.register_module_forward_pre_hook(enter),
        everywhere.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield current
    finally:
        for hook in hooks:
            hook.remove()
        HARMLESS.difference_update((enter, leave))


def count_step(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Usage:
    """One training step of `model`, whose gradients and running statistics it changes. `loss` runs its forward pass."""
    usage = Usage()
    seen: set[int] = set()
    living = _Living(usage)

    with _layer_names(model) as current:

        def pack(tensor: Tensor) -> Tensor:
            key = id_of(tensor)
            if key in living.sizes and key not in seen:
                seen.add(key)
                usage.kept[current()] += living.sizes[key]
            return tensor.detach()

        with living, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = loss(model)
        usage.forward = len(usage.timeline)
        with living:
            value.backward()
    return usage
