"""Runs a layer case on a GPU: torch in both layouts and ours in both, checked on fresh inputs and then timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from explainfix_ext._support.timing import Timing, fastest, interleaved, ratio
from explainfix_ext.commands.benchmarks.cases import LayerCase
from explainfix_ext.commands.benchmarks.conv import ours, relative_error, torch_forward, torch_input_grad
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.ops.plans.plan import ConvPlan, make_plan

from .ceilings import Ceilings, floors, precision_of
from .device import LEAST_SECONDS, Rotation, clock_of, inputs_needed

TORCH, OURS = ("torch", "torch channels_last"), ("ours", "ours channels_last")

# The most that our error may be over torch's, both against float64. A right kernel rounds about as often as torch;
# one that leaves out a border or a channel is off by 1 %. If torch is nearly exact, ROUNDING takes its error's place.
ERROR_OVER_TORCH = {"float32": 4.0, "tf32": 2.0, "bfloat16": 2.0, "float16": 2.0}
ROUNDING = {"float32": 2**-24, "tf32": 2**-11, "bfloat16": 2**-9, "float16": 2**-11}

Functions = Mapping[str, Callable[[Tensor], Tensor]]


def kernel_for(case: LayerCase) -> str:
    """Returns the name of the plan that runs this kind of bank on a GPU."""
    return "hadamard" if case.init == "hadamard" else "depthwise" if case.depthwise else "dense"


def torch_functions(case: LayerCase, direction: str, bank: FilterBank) -> Functions:
    """Returns torch's functions, by the names in TORCH; each takes x, or the output's gradient, in its layout."""
    weight = bank.weight(case.dtype)
    x = torch.empty(case.batch, case.in_channels, case.size, case.size, dtype=case.dtype, device=bank.device)

    def function(name: str) -> Callable[[Tensor], Tensor]:
        x_like, w = in_layout(name, x), in_layout(name, weight)
        if direction == "forward":
            return lambda first: torch_forward(case, first, w)
        return lambda first: torch_input_grad(case, first, x_like, w)

    return {name: function(name) for name in TORCH}


def our_functions(
    case: LayerCase, direction: str, bank: FilterBank, plan: ConvPlan, names: Sequence[str] = OURS
) -> Functions:
    """Returns the op with that plan, as a layer calls it, once for each of `names`: it takes both layouts."""
    return {name: lambda first: ours(case, bank, plan, first, direction) for name in names}


def compared(
    case: LayerCase,
    direction: str,
    bank: FilterBank,
    baseline: Functions,
    candidates: Functions,
    rounds: int,
    *,
    tf32: bool = False,
    least_seconds: float = LEAST_SECONDS,
    graph: bool = True,
    search: bool = True,
) -> tuple[dict[str, float], dict[str, Timing]]:
    """Checks all functions on the bank's device, then times them interleaved.

    Args:
        baseline: functions whose error a candidate's is compared with. A name that ends in channels_last gets such an
            input.
        candidates: functions to compare with these.
        rounds, least_seconds: arguments of `interleaved`.
        tf32: True if float32 may use TF32.
        graph: True to replay CUDA graphs.
        search: True to let cuDNN try its algorithms and take the fastest (cudnn.benchmark).

    Returns:
        (relative errors against float64, timings of one call), by name.

    Raises:
        FloatingPointError: a candidate is less exact than its precision explains, so what would be timed is wrong.
    """
    calls = {**baseline, **candidates}
    shape = input_shape(case, direction)
    out_shape = input_shape(case, "input gradient" if direction == "forward" else "forward")
    count = inputs_needed((shape.numel() + out_shape.numel()) * case.dtype.itemsize, str(bank.device))
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=search, allow_tf32=tf32):
        inputs = [torch.randn(shape, dtype=case.dtype, device=bank.device) for _ in range(count)]
        rotations = {
            name: Rotation(call, [in_layout(name, x).clone() for x in inputs], graph) for name, call in calls.items()
        }
        errors = checked(case, direction, bank, rotations, list(baseline), precision_of(case.dtype, tf32))
        runs = {name: rotation.run for name, rotation in rotations.items()}
        timings = interleaved(runs, rounds, least_seconds, clock_of(str(bank.device)))
    return errors, {name: Timing(tuple(s / count for s in t.seconds), t.repeats) for name, t in timings.items()}


def checked(
    case: LayerCase,
    direction: str,
    bank: FilterBank,
    rotations: Mapping[str, Rotation],
    baseline: Sequence[str],
    precision: str,
) -> dict[str, float]:
    """Returns the relative error (norm) of each function against float64 with the exact filters, on unseen inputs.

    Outputs are filled with NaN first, so that what a replayed graph does not write is found.

    Raises:
        FloatingPointError: an error is larger than the precision explains.
    """
    fresh = torch.randn(input_shape(case, direction), dtype=case.dtype, device=bank.device)
    expected = exact(case, direction, bank, fresh)
    errors = {}
    for name, rotation in rotations.items():
        rotation.inputs[-1].copy_(fresh)
        for output in rotation.outputs:
            output.fill_(torch.nan)
        rotation.run()
        errors[name] = relative_error(rotation.outputs[-1], expected)
    limit = ERROR_OVER_TORCH[precision] * max(ROUNDING[precision], *(errors[name] for name in baseline))
    for name, error in errors.items():
        if not error <= limit:  # a NaN is wrong too
            raise FloatingPointError(
                f"{case.name}, {direction}: {name} computes something else than float64 does: relative error "
                f"{error:.1e}, at most {limit:.1e} expected"
            )
    return errors


def exact(case: LayerCase, direction: str, bank: FilterBank, first: Tensor) -> Tensor:
    """Returns the result in float64; `first` is x, or the output's gradient."""
    weight = bank.weight(torch.float64)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):  # trying algorithms in float64 takes long
        if direction == "forward":
            return torch_forward(case, first.double(), weight)
        return torch_input_grad(case, first.double(), first.new_empty(input_shape(case, "forward")).double(), weight)


def input_shape(case: LayerCase, direction: str) -> torch.Size:
    """Returns (N, C, H, W) of what a function of that direction takes: x, or the output's gradient."""
    if direction == "forward":
        return torch.Size((case.batch, case.in_channels, case.size, case.size))
    return torch.Size((case.batch, case.out_channels, case.out_size, case.out_size))


def in_layout(name: str, tensor: Tensor) -> Tensor:
    """Returns the tensor in channels_last if the name says so, else contiguous."""
    last = name.endswith("channels_last")
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def measure_cuda_layer(
    case: LayerCase, direction: str, ceilings: Ceilings, rounds: int, *, device: str = "cuda", **options: Any
) -> dict[str, Any]:
    """Checks and times a case with the kernel for its kind of bank, whatever plan "auto" would take.

    Args:
        options: keyword arguments of `compared`.

    Returns:
        A row of the report: what the case is; `seconds` of each of TORCH and OURS; `torch_layout` and `our_layout`, the
        faster ones; `ratio`, torch's time over ours between these; `ratio_nchw` and `ratio_channels_last`, torch's
        faster over each of ours; `error` of each; `floors` in seconds; and floors over measured times:
        `floor_fraction` of ours, `copy_fraction` (bytes only: the share of the bandwidth that we reach),
        `torch_floor_fraction` of torch with dense filters.
    """
    tf32 = options.get("tf32", False)
    bank = case.bank().to(device)
    geometry: dict[str, Any] = {"stride": (case.stride,) * 2, "dilation": (1, 1), "groups": case.groups}
    plan = make_plan(bank, case.dtype, **geometry, force=kernel_for(case))
    functions = torch_functions(case, direction, bank), our_functions(case, direction, bank, plan)
    errors, timings = compared(case, direction, bank, *functions, rounds, **options)
    torchs, mine = fastest(timings, TORCH), fastest(timings, OURS)
    least = floors(case, bank, ceilings, tf32)
    seconds = timings[mine].median
    return {
        "kind": case.kind, "case": case.name + (" tf32" if tf32 else ""), "task": direction,
        "input": [case.batch, case.in_channels, case.size, case.size], "filters": list(bank.shape),
        "stride": case.stride, "groups": case.groups, "dtype": str(case.dtype).removeprefix("torch."), "tf32": tf32,
        "density": bank.density, "rank": case.rank, "plan": plan.name,
        "torch_layout": torchs.removeprefix("torch").strip() or "NCHW",
        "our_layout": mine.removeprefix("ours").strip() or "NCHW",
        "seconds": {name: timing.as_dict() for name, timing in timings.items()},
        "ratio": ratio(timings, torchs, mine),
        "ratio_nchw": ratio(timings, torchs, OURS[0]), "ratio_channels_last": ratio(timings, torchs, OURS[1]),
        "error": errors, "floors": least,
        "floor_fraction": max(least["operations"], least["bytes"]) / seconds,
        "copy_fraction": least["bytes"] / seconds,
        "torch_floor_fraction": least["dense"] / timings[torchs].median,
    }  # fmt: skip
