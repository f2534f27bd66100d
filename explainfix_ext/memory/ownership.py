"""Decides whether a backward function may overwrite the gradient that it was given (`own`).

A gradient of the size of an activation need not be copied if nobody else can see it. Three counts together say so, and
each misses what the others see:

    references from Python to the Tensor object     a hook that stored the gradient in a list
    references from C++ to the same tensor          autograd, which gives both sides of an addition the same gradient
    references to its memory                        a view or a detached copy, which is another tensor

How many references a gradient has that nobody else uses depends on the versions of Python and torch, so a probe counts
them once, in a backward pass of its own. If a new torch holds more or fewer of them, the probe's counts change alike.
If it holds more in some cases only, or no longer has these counters, `own` gives new memory: the result is the same.
functions.py calls `own`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def once_differentiable(backward: Callable[..., tuple]) -> Callable[..., tuple]:
    """Does what torch's decorator of this name does, and takes no time where gradients are off, as they mostly are."""
    checked = torch.autograd.function.once_differentiable(backward)

    def run(ctx: Any, grad: Tensor) -> tuple:
        return checked(ctx, grad) if torch.is_grad_enabled() else backward(ctx, grad)

    return run


class _Probe(Function):
    """Multiplies by 1, and counts in the backward pass the references to a gradient that nobody else has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, found: list) -> Tensor:
        ctx.found = found
        return x * 1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        _probe(grad, ctx.found)
        return None, None


def _probe(grad: Tensor, found: list) -> None:
    """Counts from a function that backward calls, as `own` does: each call with the gradient is a reference."""
    found.append(_references(grad))


def _references(grad: Tensor) -> tuple[int, int, int] | None:
    """Counts the references from Python, those from C++, and those to the memory; None in a torch that cannot."""
    try:
        storage = grad.untyped_storage()
        return sys.getrefcount(grad), grad._use_count(), torch._C._storage_Use_Count(storage._cdata)  # type: ignore[attr-defined]
    except AttributeError:
        return None


@functools.cache
def _fewest_references(kind: type[Tensor]) -> tuple[int, int, int] | None:
    """Counts the references to a gradient of class `kind`: a FakeTensor, made while its mode is on, has more."""
    found: list[tuple[int, int, int] | None] = []
    with torch.enable_grad():
        x = torch.zeros(2, requires_grad=True)
        (_Probe.apply(x * 1, found) * 1).backward(torch.ones(2))
    return found[0]


def own(grad: Tensor, layout: torch.memory_format) -> Tensor:
    """Returns where to write the input's gradient: `grad` itself where nobody else has its memory, else a new tensor.

    Both have its shape and dtype, and `layout`.

    Only a backward function may call it, with its own argument: one call more in between would be one more reference.
    torch's AccumulateGrad decides by the same rule whether it may take a gradient over.
    """
    whole = grad.numel() * grad.element_size() == grad.untyped_storage().nbytes()
    references = _references(grad)
    alone = references is not None and references == _fewest_references(type(grad))
    if whole and alone and grad.is_contiguous(memory_format=layout):
        return grad
    return torch.empty_like(grad, memory_format=layout)
