"""Runs a layer case: torch in both layouts and ours in both, on the same input and filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainfix_ext._support.timing import LEAST_SECONDS, Calls, fastest, interleaved, ratio, using_threads
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.functional import operators_of, parts_of
from explainfix_ext.ops.plans.plan import ConvPlan, make_plan

from .cases import SEED, LayerCase

DIRECTIONS = ("forward", "input gradient")
CALLS = ("torch", "torch channels_last", "torch prepacked", "ours", "ours channels_last")
COPY = "copy"  # of the input: the least that a convolution which reads it and writes as much can take
_TORCH_LAYOUTS = CALLS[:2]  # ours is compared with the faster of these

# Largest relative norm of the error against float64. Right kernels stay far below it, wrong ones far above.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def layer_calls(case: LayerCase, direction: str) -> dict[str, Callable[[], Tensor]]:
    """Returns the computations to compare, by the names in CALLS; "torch prepacked" is missing if torch cannot do it.

    Each has its input in NCHW or channels_last memory, without gradients, and makes a new output.
    """
    bank, (x, grad) = case.bank(), _inputs(case)
    plan = _plan(case, bank)
    weight = bank.weight(case.dtype)
    x_last, grad_last, weight_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad, weight))
    if direction == "forward":
        calls = {
            "torch": lambda: torch_forward(case, x, weight),
            "torch channels_last": lambda: torch_forward(case, x_last, weight_last),
            "torch prepacked": prepacked(x, weight, case.stride, case.padding, case.groups),
            "ours": lambda: ours(case, bank, plan, x, direction),
            "ours channels_last": lambda: ours(case, bank, plan, x_last, direction),
        }
        return {name: call for name, call in calls.items() if call is not None}
    return {
        "torch": lambda: torch_input_grad(case, grad, x, weight),
        "torch channels_last": lambda: torch_input_grad(case, grad_last, x_last, weight_last),
        "ours": lambda: ours(case, bank, plan, grad, direction),
        "ours channels_last": lambda: ours(case, bank, plan, grad_last, direction),
    }


def checked_errors(case: LayerCase, direction: str, calls: Calls) -> dict[str, float]:
    """Returns the relative error (norm) of each call against float64, with filters rounded to the case's dtype.

    Raises:
        FloatingPointError: an error is larger than the dtype explains, so what would be timed is wrong.
    """
    x, grad = (t.double() for t in _inputs(case))
    weight = case.bank().weight(case.dtype).double()
    expected = torch_forward(case, x, weight) if direction == "forward" else torch_input_grad(case, grad, x, weight)
    errors = {name: relative_error(call(), expected) for name, call in calls.items()}
    for name, error in errors.items():
        if not error <= TOLERANCE[case.dtype]:  # a NaN is wrong too
            raise FloatingPointError(
                f"{case.name}, {direction}: {name} computes something else than float64 does: relative error "
                f"{error:.1e}, at most {TOLERANCE[case.dtype]:.0e} expected"
            )
    return errors


def measure_layer(
    case: LayerCase,
    direction: str,
    threads: int,
    rounds: int,
    peak: float,
    least_seconds: float = LEAST_SECONDS,
) -> dict[str, Any]:
    """Checks a case, then times it.

    Args:
        threads: number of threads.
        rounds, least_seconds: arguments of `interleaved`.
        peak: FMAs, and as many load-adds, per second and thread (`Peaks.operations`).

    Returns:
        A row of the report: what the case is; `seconds` of each of CALLS, null if torch cannot do it; `torch_layout`,
        the faster one; `ratio`, its time over ours (NCHW in and out), and `ratio_channels_last`; `error` of each;
        `peak_fraction`, the share of the peak that ours (NCHW) reaches, and the `operation` that it counts;
        `copies`, our time (NCHW) over that of a copy of the input, whose `seconds` are there, too.
    """
    with torch.no_grad(), using_threads(threads):
        calls = layer_calls(case, direction)
        errors = checked_errors(case, direction, calls)
        timings = interleaved(calls | {COPY: _copy(case, direction)}, rounds, least_seconds)
    bank, baseline = case.bank(), fastest(timings, _TORCH_LAYOUTS)
    unit, count = case.operations(bank)
    return {
        "kind": case.kind, "case": case.name, "task": direction, "threads": threads,
        "input": [case.batch, case.in_channels, case.size, case.size], "filters": list(bank.shape),
        "stride": case.stride, "groups": case.groups, "dtype": str(case.dtype).removeprefix("torch."),
        "density": bank.density, "rank": case.rank, "plan": _plan(case, bank).name,
        "torch_layout": "channels_last" if baseline.endswith("channels_last") else "NCHW",
        "seconds": {name: timings[name].as_dict() if name in timings else None for name in (*CALLS, COPY)},
        "ratio": ratio(timings, baseline, "ours"),
        "ratio_channels_last": ratio(timings, baseline, "ours channels_last"),
        "copies": ratio(timings, "ours", COPY),
        "error": {name: errors.get(name) for name in CALLS},
        "operation": unit, "operations": count,
        "peak_fraction": count / (timings["ours"].median * threads * peak),
    }  # fmt: skip


def prepacked(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int = 1) -> Callable[[], Tensor] | None:
    """Returns F.conv2d(x, weight) by oneDNN, its weight packed beforehand; None if oneDNN cannot do it."""
    geometry = ([padding] * 2, [stride] * 2, [1, 1], groups)
    try:
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))

        def call() -> Tensor:
            return torch.ops.mkldnn._convolution_pointwise(x, packed, None, *geometry, "none", [], "")

        call()
    except (AttributeError, NotImplementedError, RuntimeError):  # this torch has no oneDNN, or oneDNN not this dtype
        return None
    return call


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Returns |got - expected| / |expected|, in float64."""
    return ((got.double() - expected).norm() / expected.norm()).item()


def _inputs(case: LayerCase) -> tuple[Tensor, Tensor]:
    """Draws x (N, C, H, W) and an output gradient (N, O, H', W') from a normal distribution; the same at each call."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(case.batch, case.in_channels, case.size, case.size, generator=generator)
    grad = torch.randn(case.batch, case.out_channels, case.out_size, case.out_size, generator=generator)
    return x.to(case.dtype), grad.to(case.dtype)


def _copy(case: LayerCase, direction: str) -> Callable[[], Tensor]:
    source = _inputs(case)[DIRECTIONS.index(direction)]
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _plan(case: LayerCase, bank: FilterBank) -> ConvPlan:
    return make_plan(bank, case.dtype, stride=(case.stride,) * 2, dilation=(1, 1), groups=case.groups, force="auto")


def ours(case: LayerCase, bank: FilterBank, plan: ConvPlan, first: Tensor, direction: str) -> Tensor:
    """Calls our op as a layer does; `first` is x, or the output's gradient."""
    pair, (_, tensors, numbers) = operators_of(bank), parts_of(bank, plan)
    geometry = ((case.stride,) * 2, (case.padding,) * 2, (1, 1), case.groups, *numbers)
    if direction == "forward":
        return pair.conv(first, *tensors, plan.packed, None, *geometry)  # type: ignore[no-any-return]
    return pair.input_grad(first, *tensors, plan.packed, [case.size] * 2, *geometry)  # type: ignore[no-any-return]


def torch_forward(case: LayerCase, x: Tensor, weight: Tensor) -> Tensor:
    """Returns the output (N, O, H', W') by F.conv2d."""
    return F.conv2d(x, weight, None, case.stride, case.padding, 1, case.groups)


def torch_input_grad(case: LayerCase, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Returns the gradient of x (N, C, H, W) from grad (N, O, H', W'); of x itself, torch reads only the shape."""
    geometry = ([case.stride] * 2, [case.padding] * 2, [1, 1], False, [0, 0], case.groups)
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [True, False, False])[0]
