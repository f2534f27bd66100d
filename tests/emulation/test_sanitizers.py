"""All emulated kernels again, under AddressSanitizer (nothing is read or written out of bounds, in global or shared
memory) and ThreadSanitizer (what threads exchange through shared memory is ordered by barriers)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.host_compiler import BUILD
from support.sanitizers import preloaded

HERE = Path(__file__).parent


@pytest.mark.skipif(BUILD != "plain", reason="this is the run under a sanitizer")
@pytest.mark.parametrize("sanitizer", ["asan", pytest.param("tsan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", sorted(set(HERE.glob("test_*.py")) - {Path(__file__)}), ids=lambda path: path.stem)
def test_sanitizer_finds_nothing(path: Path, sanitizer: str) -> None:
    env = os.environ | preloaded(sanitizer) | {"EXPLAINFIX_EMULATION": sanitizer, "OMP_NUM_THREADS": "1"}
    # A barrier that is left out is a race indeed.
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-p", "no:cacheprovider", "-k", "not barrier"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, cwd=HERE.parents[1])
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
