"""This module verifies that a pruned model computes what the masked one does, or says where the two part.

The masked model has the same filters set to zero, but all its channels. The check is numerical: the outputs for the
example input and for random input agree to 1e-5 of their norm. `channelprune` runs it, unless verify=False.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from explainfix_ext._support.text import first_line
from explainfix_ext.prune.cut.layers import filter_shape, zero_filters_
from explainfix_ext.prune.trace.graph import ChannelGraph
from explainfix_ext.prune.trace.inputs import copied, random_like, to_double
from explainfix_ext.prune.trace.modes import same_random_numbers, tensors_of

TOLERANCE = 1e-5


class VerificationError(ValueError):
    """Says that the pruned model does not compute what the masked one does."""


class NotFiniteError(VerificationError):
    """Says that an output is not finite, so that nothing can be compared."""


ProofError = VerificationError  # its name before


@torch.no_grad()
def ignore_inputs_(module: Any, inputs: Tensor) -> None:
    """Sets the weights that read these input channels, (I,) bool, to zero.

    That masks a channel which is dropped although it is a constant other than zero.
    """
    if not bool(inputs.any()):
        return
    groups = getattr(module, "groups", 1)
    columns = inputs.reshape(groups, 1, -1).repeat(1, filter_shape(module)[0] // groups, 1).flatten(0, 1)
    zero_filters_(module, columns)


@torch.no_grad()
def verify_pruned(
    pruned: nn.Module,
    masked: nn.Module,
    inputs: tuple[Any, ...],
    *,
    seed: int,
    exact: Callable[[], nn.Module],
) -> float:
    """Compares the outputs of both models, and returns the largest |pruned - masked| / |masked|.

    Args:
        pruned, masked: the models, in eval mode, or both in training mode.
        inputs: positional arguments of an example; random input of the same shapes is tried, too.
        seed: for the random input.
        exact: returns the pruned model in float64, cut from the original in float64, so that folded constants are not
            rounded. It is called only if the difference exceeds 1e-5, to tell an error from rounding.

    Raises:
        VerificationError: the difference exceeds 1e-5 also in float64, or the output is not finite.
    """
    cases = [inputs, random_like(inputs, seed)]
    error = max(difference(pruned, masked, case) for case in cases)
    if not error <= TOLERANCE:
        pruned, masked = exact(), copy.deepcopy(masked).double()
        try:
            error = max(difference(pruned, masked, to_double(case)) for case in cases)
        except RuntimeError as reason:
            raise VerificationError(
                f"the pruned model differs from the masked one by {error:.1e} of the output's norm, and float64, which "
                f"would tell whether that is rounding, does not run: {first_line(reason)}"
            ) from reason
    if not math.isfinite(error):
        raise NotFiniteError("the output of the masked or of the pruned model is not finite: nothing can be compared")
    if error > TOLERANCE:
        raise VerificationError(f"the pruned model differs from the masked one by {error:.1e} of the output's norm")
    return error


@torch.no_grad()
def difference(pruned: nn.Module, masked: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Returns the largest |pruned - masked| / |masked| of the outputs for `inputs`.

    Raises:
        VerificationError: the pruned model does not run, or an output has another shape.
    """
    expected = _outputs(masked, inputs)
    try:
        got = _outputs(pruned, inputs)
    except Exception as error:  # such as a size written in the code, or a branch that the example did not take
        raise VerificationError(f"the pruned model does not run: {first_line(error)}") from error
    if not expected:
        raise VerificationError("the model's output holds no tensor that could be compared")
    return max(_relative(x, y) for x, y in zip(got, expected, strict=True))


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with same_random_numbers():
        return tensors_of(model(*copied(inputs)))


def _relative(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        raise VerificationError(f"the pruned model's output must be {list(expected.shape)}, got {list(got.shape)}")
    if not bool(torch.isfinite(expected).all()):
        return math.inf
    norm = expected.double().norm().item()
    return (got.double() - expected.double()).norm().item() / (norm or 1.0)


@torch.no_grad()
def where_they_part(
    pruned: nn.Module,
    masked: nn.Module,
    inputs: tuple[Any, ...],
    *,
    graph: fx.Graph,
    channels: ChannelGraph,
    gone: Tensor,
) -> str:
    """Names the first operation of the traced graph whose values differ in the channels that stay; empty if none does.

    Args:
        pruned, masked: the models, in eval mode.
        inputs: positional arguments of an example.
        graph, channels: what the torch.fx walk made.
        gone: (ids,) bool, the ids that were removed.
    """
    seen: dict[str, Tensor] = {}

    class Record(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if node.name in channels.values and isinstance(result, Tensor):
                seen[node.name] = result.clone()
            return result

    class Compare(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if node.name in seen and isinstance(result, Tensor):
                axis, ids = channels.values[node.name]
                kept = (~gone[ids]).nonzero().flatten().to(result.device)
                expected = seen[node.name].index_select(axis, kept)
                if result.shape != expected.shape or _relative(result, expected) > 1e-4:
                    raise _Parting(str(node.target if node.op == "call_module" else node.name))
            return result

    Record(masked, graph=graph).run(*copied(inputs))
    try:
        Compare(pruned, graph=graph).run(*copied(inputs))
    except _Parting as parting:
        return first_line(parting)
    except Exception as error:
        return f"an operation that cannot run pruned: {first_line(error)}"
    return ""


class _Parting(Exception):
    """Tells `where_they_part` that the first difference is found."""
