"""This module compares a network with the model that it was made of, on an example and on other sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from explainfix_ext._support.models import on_a_copy
from explainfix_ext._support.text import times

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
_AS_FAR = 4  # times as far from the model in float64 as the model itself may the network be
_AT_MOST = 1e-2  # however far the model itself is


@dataclass
class Comparison:
    """Holds how far a network's outputs are from the model's, as a share of their norm.

    Attributes:
        error: the largest difference; of integers, the share of those that are others.
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
    numbers = (*model.parameters(), *model.buffers(), *tree_leaves(inputs))
    single = any(isinstance(t, Tensor) and t.dtype is torch.float32 for t in numbers)
    result, tolerance = Comparison(), TOLERANCE[torch.float32 if single else torch.float64]
    for case in _cases(inputs):
        try:
            expected = _outputs(model, case)
        except Exception:  # the model is not for this size
            if not result.sizes:
                raise
            continue
        if not expected:
            raise ValueError("its output has no tensor that could be compared")
        got, dtypes = _outputs(network, case), [t.dtype for t in expected]
        if [t.dtype for t in got] != dtypes:
            raise ValueError(f"its outputs' dtypes would differ from {', '.join(map(str, dtypes))}")
        allowed, error = tolerance, _distance(got, expected)
        if error > allowed == TOLERANCE[torch.float32]:
            with on_a_copy(model) as copied:
                exact = _outputs(copied.double(), tree_map(_double, case))
            allowed = min(max(allowed, _AS_FAR * _distance(expected, exact)), _AT_MOST)
            error = _distance(got, exact)
        result.error = max(result.error, error)
        shape = next(tuple(leaf.shape) for leaf in tree_leaves(case) if isinstance(leaf, Tensor))
        result.sizes.append(shape)
        if error > allowed:
            result.failure = (
                f"its outputs would differ by {error:.1e} of their norm at {times(shape)}, over {allowed:.0e}"
            )
            break
    return result


def _cases(inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yields the inputs, and for a batch of images also twice as many, larger and smaller ones."""
    yield inputs
    x = inputs[0]
    if len(inputs) > 1 or not isinstance(x, Tensor) or x.ndim != 4 or x.numel() == 0:
        return
    yield (torch.cat([x, x.flip(0, 3)]),)
    height, width = x.shape[2:]
    for size in ((height + 32, width + 64), (max(height * 3 // 4, 1), max(width // 2 + 1, 1))):
        yield (F.interpolate(x.double(), size, mode="bilinear").to(x.dtype),)


def _outputs(module: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Tensor]:
    """Returns the tensors that a module returns for copies of the inputs; what is random is always alike."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        output = module(*tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs))
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _distance(got: list[Tensor], expected: list[Tensor]) -> float:
    """Returns the largest difference of two outputs; infinity where their shapes, or what is not finite, differ."""
    if [t.shape for t in got] != [t.shape for t in expected]:
        return math.inf
    return max(map(_difference, got, expected))


def _difference(got: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference as a share of the expected one's; of integers, how many are others."""
    if not expected.is_floating_point():
        return float((got != expected).double().mean()) if got.numel() else 0.0
    a, b = got.double(), expected.double()
    alike = (a == b) | (a.isnan() & b.isnan())  # infinity less infinity is NaN
    norm = torch.where(b.isfinite(), b, 0).norm().clamp_min(torch.finfo(torch.float32).tiny)
    share = float(torch.where(alike, 0, a - b).norm() / norm)
    return math.inf if math.isnan(share) else share


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
