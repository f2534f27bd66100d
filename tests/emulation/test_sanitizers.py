"""All emulated kernels again, under AddressSanitizer (nothing is read or written out of bounds, in global or shared
memory) and ThreadSanitizer (what threads exchange through shared memory is ordered by barriers)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.host_compiler import BUILD

HERE = Path(__file__).parent
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # Python does not free all it has
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 report_signal_unsafe=0 exitcode=66",
}


@pytest.mark.skipif(BUILD != "plain", reason="this is the run under a sanitizer")
@pytest.mark.parametrize("sanitizer", ["asan", pytest.param("tsan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", sorted(set(HERE.glob("test_*.py")) - {Path(__file__)}), ids=lambda path: path.stem)
def test_sanitizer_finds_nothing(path: Path, sanitizer: str) -> None:
    # A sanitizer looks for what throws when it starts, so that the C++ library must be there then.
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in (f"lib{sanitizer}.so", "libstdc++.so")
    ]
    env = os.environ | OPTIONS
    env |= {"EXPLAINFIX_EMULATION": sanitizer, "LD_PRELOAD": " ".join(libraries), "OMP_NUM_THREADS": "1"}
    # A barrier that is left out is a race indeed.
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-p", "no:cacheprovider", "-k", "not barrier"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, cwd=HERE.parents[1])
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
