"""This module compares a network with the model that it was made of, on an example and on other sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from explainfix_ext._support.models import on_a_copy
from explainfix_ext._support.text import times

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
_AS_FAR = 4  # times as far from the model in float64 as the model itself may the network be


@dataclass
class Comparison:
    """Holds how far a network's outputs are from the model's, as a share of their norm.

    Attributes:
        error: the largest difference.
        sizes: the shapes of the first input at which outputs were compared.
        failure: a sentence where the difference is too large; else empty.
    """

    error: float = 0.0
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    failure: str = ""


@torch.no_grad()
def compare(model: nn.Module, network: Callable[..., Any], inputs: tuple[Any, ...]) -> Comparison:
    """Compares on the inputs, and on images of other sizes where the model takes them.

    Where rounding alone moves the model's outputs by more than the tolerance, what counts is how far both are from the
    model in float64.
    """
    result = Comparison()
    for case in _cases(inputs):
        try:
            expected = _leaves(model(*case))
        except Exception:  # the model is not for this size
            if not result.sizes:
                raise
            continue
        got, allowed = _leaves(network(*case)), TOLERANCE[expected[0].dtype]
        error = _distance(got, expected)
        if error > allowed and expected[0].dtype is torch.float32:
            with on_a_copy(model) as copied:
                exact = _leaves(copied.double()(*(_double(x) for x in case)))
            error, allowed = _distance(got, exact), max(allowed, _AS_FAR * _distance(expected, exact))
        result.error = max(result.error, error)
        result.sizes.append(tuple(case[0].shape))
        if not error <= allowed:
            size = times(case[0].shape)
            result.failure = f"its outputs would differ by {error:.1e} of their norm at {size}, over {allowed:.0e}"
            break
    return result


def _cases(inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yields the inputs, and for a batch of images also twice as many, larger and smaller ones."""
    yield inputs
    x = inputs[0]
    if len(inputs) > 1 or x.ndim != 4:
        return
    yield (torch.cat([x, x.flip(0, 3)]),)
    height, width = x.shape[2:]
    for size in ((height + 32, width + 64), (max(height * 3 // 4, 1), max(width // 2 + 1, 1))):
        yield (F.interpolate(x, size, mode="bilinear"),)


def _leaves(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _distance(got: list[Tensor], expected: list[Tensor]) -> float:
    """Returns the largest norm of a difference, as a share of the expected one's; infinity for other numbers."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if not b.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        norm = b.double().norm().clamp_min(torch.finfo(torch.float32).tiny)
        share = float((a.double() - b.double()).norm() / norm)
        worst = max(worst, share if share == share else float("inf"))
    return worst


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
