"""Which convolutions' outputs are read by one BatchNorm and by nothing else, so that it may write into their memory.

torch.fx proves it, for the model or for those parts of it that it can trace. The proof holds while the traced module's
forward runs, in training mode: a `Region` knows when that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from explainfix_ext.nn.fixed_conv2d import FixedConv2d


class Region:
    """A traced module: is its forward running now?"""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._depth = 0
        self._hooks = [
            root.register_forward_pre_hook(self._enter),
            root.register_forward_hook(self._leave, always_call=True),
        ]

    @property
    def running(self) -> bool:
        return self._depth > 0 and self._root.training

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self._depth += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._depth -= 1

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def watched(module: nn.Module) -> bool:
    """Does anyone look at the module's inputs or outputs?"""
    everywhere = torch.nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or {*everywhere._global_forward_pre_hooks.values(), *everywhere._global_forward_hooks.values()} - HARMLESS
    )


# Global hooks that keep no tensor: memory_report's.
HARMLESS: set[Any] = set()


def single_reader_convolutions(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """(traced module, its convolutions that only one BatchNorm reads), for each largest part that can be traced."""
    graph = _trace(model)
    if graph is None:
        for child in model.children():
            yield from single_reader_convolutions(child)
        return
    modules = dict(model.named_modules())
    found: dict[nn.Module, bool] = {}
    for node in graph.nodes:
        conv = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
            found[conv] = found.get(conv, True) and _read_by_batch_norm(node, modules)
    convolutions = [conv for conv, alone in found.items() if alone]
    if convolutions:
        yield model, convolutions


def _read_by_batch_norm(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if len(node.users) != 1:
        return False
    (reader,) = node.users
    return reader.op == "call_module" and isinstance(modules[str(reader.target)], nn.BatchNorm2d)


class Tracer(fx.Tracer):
    """Takes fixed layers and every BatchNorm as they are, as torch.fx takes torch's own."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (FixedConv2d, nn.BatchNorm2d)) or super().is_leaf_module(module, name)


def _trace(module: nn.Module) -> fx.Graph | None:
    """In training mode; None where torch.fx cannot follow, for whatever reason."""
    modes = {m: m.training for m in module.modules()}
    try:
        for m in modes:
            m.training = True
        return Tracer().trace(module)
    except Exception:  # a model may raise anything on a proxy
        return None
    finally:
        for m, training in modes.items():
            m.training = training
