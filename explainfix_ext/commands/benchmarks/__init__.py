"""Measures our convolutions beside torch's on this CPU, as layers and in networks; `commands/bench.py` calls it.

cases (what is measured) -> conv, models (how one is run and checked) -> _support.timing (turn by turn), beside peaks
(what this CPU can do at best) -> report, picture. GPUs are measured by scripts in bench/, which share bench/gpu.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from explainfix_ext.ops import binaries

from .cases import LAYER_CASES, MODEL_CASES, Case, LayerCase, ModelCase, select
from .conv import DIRECTIONS, measure_layer
from .models import measure_model
from .peaks import Peaks, measure_peaks

__all__ = ["LAYER_CASES", "MODEL_CASES", "Case", "Job", "LayerCase", "ModelCase", "Peaks", "jobs"]
__all__ += ["measure_peaks", "parse_threads", "select", "use_isa"]

Job = tuple[str, Callable[[], list[dict[str, Any]]]]

QUICK_ROUNDS = 3

# Environment variables that limit torch and its libraries to an instruction set. Torch reads them when it starts.
_LIMITS: dict[str, dict[str, str]] = {
    "avx512": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "plain": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def jobs(
    cases: Sequence[Case], threads: Sequence[int], rounds: int, peaks: Peaks, quick: bool = False
) -> Iterator[Job]:
    """Yields the measurements of all cases: (name, function that measures and returns rows of the report).

    Args:
        threads: numbers of threads; each case is measured on each.
        rounds: how often each computation is timed.
        peaks: what this CPU can do at best.
        quick: take small inputs and single calls: shows that it runs, not how fast.
    """
    least = {"least_seconds": 0.0} if quick else {}

    def layer(case: LayerCase, direction: str, count: int) -> Job:
        run = lambda: [measure_layer(case, direction, count, rounds, peaks.operations, **least)]  # noqa: E731
        return f"{case.name}, {direction}, threads: {count}", run

    def model(case: ModelCase, count: int) -> Job:
        return f"{case.name}, threads: {count}", lambda: measure_model(case, count, rounds, **least)

    for case in [case.quick() for case in cases] if quick else cases:
        for count in threads:
            if isinstance(case, ModelCase):
                yield model(case, count)
            else:
                yield from (layer(case, direction, count) for direction in DIRECTIONS)


def parse_threads(text: str | None) -> list[int]:
    """Parses --threads: "1,2" is [1, 2]; None is those of 1 and 2 for which there are cores.

    Raises:
        ValueError: the text holds anything but numbers from 1 to the number of cores.
    """
    cores = os.cpu_count() or 1
    if text is None:
        return [1, 2][:cores]
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= cores for word in words):
        raise ValueError(f"threads must be numbers from 1 to {cores}, the cores here, such as 1,{cores}; got {text!r}")
    return list(dict.fromkeys(int(word) for word in words))


def use_isa(isa: str | None, argv: Sequence[str]) -> str:
    """Limits torch and our kernels to an instruction set; None takes the best. Returns the name of the one in use.

    Torch reads its limits when it starts: if they are not set, this function restarts the process as `python argv`.

    Raises:
        ValueError: there is no such instruction set, or this CPU does not have it.
    """
    if isa is not None and isa not in _LIMITS:
        raise ValueError(f"isa must be one of {', '.join(_LIMITS)}, got {isa!r}")
    limits = _LIMITS.get(isa or "", {})
    if any(os.environ.get(name) != value for name, value in limits.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *argv], {**os.environ, **limits})
    found = binaries.set_cpu_isa(isa)
    if isa not in (None, found):
        raise ValueError(f"isa {isa!r} is not there: our kernels run on {found!r} here")
    return found
