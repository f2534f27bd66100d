"""Finds the convolutions whose output only one BatchNorm reads, so that the BatchNorm may write into its memory.

torch.fx records what a module's forward calls, in order. Where a convolution's result appears in the record as the
argument of one BatchNorm and nowhere else, that BatchNorm is its single consumer. save.py asks for these, in the
largest parts of the model that torch.fx can trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from explainfix_ext.nn.fixed_conv2d import FixedConv2d


class Region:
    """Stands for a traced module, and tells whether what the trace showed holds for the call that is being made.

    The record was taken of one forward, in training mode. It says nothing of a call of an inner layer from elsewhere,
    nor of eval mode, in which a forward may do something else. So it holds while the module's own forward runs, and
    every module whose forward was looked into is in training mode. Hooks on the module count its running calls. Hooks
    on inner modules are not in the record: `watched` asks for those.
    """

    # A model is pickled with its regions, and with their hooks as methods: these names of attributes and methods stay.
    _traced: Sequence[nn.Module] = ()  # a region from an older pickle has no list of its own

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._traced = [module for module in root.modules() if not Tracer().is_leaf_module(module, "")]
        self._depth = 0
        self._hooks = [
            root.register_forward_pre_hook(self._enter),
            root.register_forward_hook(self._leave, always_call=True),
        ]

    @property
    def running(self) -> bool:
        """Tells whether the record holds now: the forward runs, and all that was looked into is in training mode."""
        return self._depth > 0 and self._root.training and all(module.training for module in self._traced)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self._depth += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._depth -= 1

    def remove(self) -> None:
        """Takes the hooks off the module."""
        for hook in self._hooks:
            hook.remove()


_harmless_hooks: set[Callable] = set()


def watched(module: nn.Module) -> bool:
    """Says whether a forward hook, of the module or of all modules, sees the module's input or output."""
    everywhere = torch.nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or {*everywhere._global_forward_pre_hooks.values(), *everywhere._global_forward_hooks.values()}
        - _harmless_hooks
    )


@contextmanager
def hooks_on_all_modules(before: Callable, after: Callable) -> Iterator[None]:
    """Registers global forward hooks that keep no tensor, so that they do not make modules count as watched."""
    everywhere = torch.nn.modules.module
    _harmless_hooks.update((before, after))
    hooks = [
        everywhere.register_module_forward_pre_hook(before),
        everywhere.register_module_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _harmless_hooks.difference_update((before, after))


def single_consumer_convolutions(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Yields each largest part that can be traced, with its convolutions whose single consumer is a BatchNorm."""
    graph = _trace(model)
    if graph is None:
        for child in model.children():
            yield from single_consumer_convolutions(child)
        return
    modules = dict(model.named_modules())
    found: dict[nn.Module, bool] = {}
    for node in graph.nodes:
        conv = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):  # called twice, it must be so both times
            found[conv] = found.get(conv, True) and _feeds_one_batch_norm(node, modules)
    convolutions = [conv for conv, alone in found.items() if alone]
    if convolutions:
        yield model, convolutions


def _feeds_one_batch_norm(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if len(node.users) != 1:
        return False
    (consumer,) = node.users
    return consumer.op == "call_module" and isinstance(modules[str(consumer.target)], nn.BatchNorm2d)


class Tracer(fx.Tracer):
    """Traces a model without looking into fixed layers and BatchNorms, subclasses included.

    torch.fx alone does so for torch's own classes only.
    """

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (FixedConv2d, nn.BatchNorm2d)) or super().is_leaf_module(module, name)


def _trace(module: nn.Module) -> fx.Graph | None:
    """Records the module's forward in training mode; None where torch.fx cannot follow, for whatever reason."""
    modes = {m: m.training for m in module.modules()}
    try:
        for m in modes:  # by the flag: a model's own train() may do more than that
            m.training = True
        return Tracer().trace(module)
    except Exception:  # a model may raise anything on a proxy
        return None
    finally:
        for m, training in modes.items():
            m.training = training
