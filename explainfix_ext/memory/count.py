"""Counts what a training step keeps for its backward pass (`saved_bytes`), and all that is alive (`count_step`).

Both count storages, each once and whole, because what a view keeps alive is all of its storage. report.py and the
training's table of costs call them.
"""

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

from explainfix_ext.nn.fixed_conv import FixedConv

MIB = 2**20
Loss = Callable[[nn.Module], Tensor]  # runs the forward pass of the network that it is given


@dataclass
class Usage:
    """Holds the bytes of one training step. Parameters, buffers, filters and inputs are not counted.

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
        """The sum over `kept`."""
        return sum(self.kept.values())


def count_step(model: nn.Module, loss: Loss) -> Usage:
    """Runs one training step of `model`, whose gradients and running statistics it changes, and counts its bytes.

    What an operation allocates and frees inside itself is not seen. A model compiled by torch.compile would run as
    plain Python, because operations are watched one by one: `saved_bytes` takes such a model.
    """
    usage = Usage()
    living = _Living(usage)
    with _layer_names(model) as current:

        def add(storage: torch.UntypedStorage) -> None:
            usage.kept[current()] += storage.nbytes()

        with living, _visit_saved(living.made_here, add):
            value = loss(model)
        usage.forward = len(usage.timeline)
        with living:
            value.backward()
    return usage


def saved_bytes(model: nn.Module, loss: Loss) -> int:
    """Runs the forward pass of one step, and counts the bytes that autograd keeps for the backward pass.

    The network's own tensors are not counted. Inputs are, unlike in `Usage.kept`: a learned first convolution keeps the
    images.
    """
    own = {_key(tensor.untyped_storage()) for tensor in own_tensors(model)}
    sizes: list[int] = []
    with _visit_saved(lambda storage: _key(storage) not in own, lambda storage: sizes.append(storage.nbytes())):
        total = loss(model)  # what is kept lives until the end of this function, so that no key is used twice
    del total
    return sum(sizes)


@contextmanager
def _visit_saved(
    counts: Callable[[torch.UntypedStorage], bool], visit: Callable[[torch.UntypedStorage], None]
) -> Iterator[None]:
    """Calls `visit` once for each storage that autograd saves and that `counts`."""
    seen: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if counts(storage) and _key(storage) not in seen:
            seen.add(_key(storage))
            visit(storage)
        return tensor.detach()  # an output that its own backward keeps would keep itself for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


class _Living(TorchDispatchMode):
    """Sees every operation, and sums the bytes of the storages that operations have made and that are still alive."""

    def __init__(self, usage: Usage) -> None:
        super().__init__()
        self._usage = usage
        self._sizes: dict[int, int] = {}
        self._bytes = 0

    def made_here(self, storage: torch.UntypedStorage) -> bool:
        """Says whether an operation has made the storage, and not the user."""
        return _key(storage) in self._sizes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                given = {_key(t.untyped_storage()) for t in tree_leaves(args) if isinstance(t, Tensor)}
                self._add(tensor.untyped_storage(), given)
        self._usage.timeline.append(self._bytes)
        return result

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = _key(storage)
        if key in self._sizes or key in given:  # a result in an argument's memory is nothing new
            return
        self._sizes[key] = storage.nbytes()
        self._bytes += storage.nbytes()
        self._usage.peak = max(self._usage.peak, self._bytes)
        # torch keeps one Python object of a storage as long as its memory lives.
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._bytes -= self._sizes.pop(key)


def _key(storage: torch.UntypedStorage) -> int:
    """Tells apart the storages that are alive: the address of torch's object for it, which views share."""
    return storage._cdata


def own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yields parameters, buffers, and the filters of fixed layers, which are neither."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, FixedConv):
            packed = module.kernel_plan.packed
            yield from (*module.bank.tensors, *([] if packed is None else [packed]))


@contextmanager
def _layer_names(model: nn.Module) -> Iterator[Callable[[], tuple[str, str]]]:
    """Gives a function that returns (name, class) of the layer whose forward is running."""
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
    hooks = [
        everywhere.register_module_forward_pre_hook(enter),
        everywhere.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield current
    finally:
        for hook in hooks:
            hook.remove()
