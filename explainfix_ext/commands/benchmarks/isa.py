"""Limits torch and our kernels to an instruction set. `commands/bench.py` and bench/tune_cpu.py call it first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from explainfix_ext.ops import binaries

# Environment variables that limit torch and its libraries to an instruction set. Torch reads them when it starts.
LIMITS: dict[str, dict[str, str]] = {
    "avx512": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "plain": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def use_isa(isa: str | None, argv: Sequence[str]) -> str:
    """Limits torch and our kernels to an instruction set; None takes the best. Returns the name of the one in use.

    Torch reads its limits when it starts: if they are not set, this function restarts the process as `python argv`.

    Raises:
        ValueError: there is no such instruction set, or this CPU does not have it.
    """
    if isa is not None and isa not in LIMITS:
        raise ValueError(f"isa must be one of {', '.join(LIMITS)}, got {isa!r}")
    limits = LIMITS.get(isa or "", {})
    if any(os.environ.get(name) != value for name, value in limits.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *argv], {**os.environ, **limits})
    found = binaries.set_cpu_isa(isa)
    if isa not in (None, found):
        raise ValueError(f"isa {isa!r} is not there: our kernels run on {found!r} here")
    return found
