"""Finds out whether a gradient is referenced by nobody else, so that its memory may be overwritten."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class _Probe(Function):
    """Counts the references to a gradient that nobody else has."""

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
    """As deep in calls as `own` is."""
    found.append(_references(grad))


def _references(grad: Tensor) -> tuple[int, int, int]:
    """From Python, from C++, and to the memory."""
    storage = grad.untyped_storage()
    return sys.getrefcount(grad), grad._use_count(), torch._C._storage_Use_Count(storage._cdata)  # type: ignore[attr-defined]


@functools.cache
def _fewest_references() -> tuple[int, int, int]:
    found: list[tuple[int, int, int]] = []
    with torch.enable_grad():
        x = torch.zeros(2, requires_grad=True)
        (_Probe.apply(x * 1, found) * 1).backward(torch.ones(2))
    return found[0]


def own(grad: Tensor, layout: torch.memory_format) -> Tensor:
    """The gradient in `layout`, to be overwritten: itself where nobody else has its memory, else a copy.

    Called with a backward's argument, from there. AccumulateGrad takes gradients over by the same rule.
    """
    whole = grad.numel() * grad.element_size() == grad.untyped_storage().nbytes()
    if whole and _references(grad) == _fewest_references() and grad.is_contiguous(memory_format=layout):
        return grad
    return grad.clone(memory_format=layout)
