"""`calls_of` keeps what modules take and give while a model runs; `gradients` takes what flows back through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """This is one call of a module: its name, a copy of its first argument, and its output."""

    name: str
    input: Any
    output: Tensor


@contextmanager
def calls_of(modules: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """Collects the calls of modules in a `with` block, in their order, of those that give a tensor with a gradient."""
    calls: list[Call] = []

    def keep(name: str) -> Any:
        def forward(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return None
            given = args[0] if args else next(iter(kwargs.values()))
            calls.append(Call(name, given.clone() if isinstance(given, Tensor) else given, output))
            return output.clone()  # for the model, which may overwrite it, as it may the input

        return forward

    handles = [module.register_forward_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def gradients(outputs: Sequence[Tensor], starts: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Returns what flows back from outputs, where it starts, to inputs: zeros where no way leads. The graph is kept."""
    if not any(output.requires_grad for output in outputs):
        return [torch.zeros_like(tensor) for tensor in inputs]
    found = torch.autograd.grad(outputs, inputs, starts, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if f is None else f.detach() for t, f in zip(inputs, found, strict=True)]
