"""Harness A: csrc/cuda with its launchers, compiled by g++, runs tests of the operators.

In a process of its own, for the launchers take over the operators of CPU tensors. Any test can run so:

    PYTHONPATH=tests pytest -p emulation.launchers.plugin tests/nn/test_swap.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.launchers.library import kernels_in
from support.paths import ROOT
from support.sanitizers import preloaded

# Tests, options of pytest, and the folders of csrc/cuda/device whose kernels all of them must launch together.
HADAMARD = "tests/ops/test_hadamard_conv2d.py"
OF_THE_CPU = (
    "test_what_the_kernel_indexes_by_is_checked[outputs]",
    "test_what_the_kernel_indexes_by_is_checked[inputs]",
    "test_the_kernels_scratch_memory_has_no_number_for_each_filter",
)
PASSES = ["tests/ops/test_passes.py", "tests/ops/test_max_pool.py"]
RUNS: dict[str, tuple[list[str], list[str]]] = {
    "launches": (["tests/emulation/launchers/on_launchers.py"], []),
    "fixed_conv2d": (["tests/ops/test_fixed_conv2d.py"], ["dense", "depthwise"]),
    # The values of places are on a GPU, where C++ does not wait for them; and filters of 4096 channels are composed.
    "hadamard": ([HADAMARD, *(f"--deselect={HADAMARD}::{test}" for test in OF_THE_CPU)], ["hadamard"]),
    "passes and pooling": (PASSES, ["passes"]),
}


def run_pytest(arguments: list[str], environment: dict[str, str]) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "emulation.launchers.plugin", "-p", "no:cacheprovider", "-q"]
    run = subprocess.run([*command, *arguments], env=env | environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]


@pytest.mark.parametrize("name", RUNS)
def test_tests_pass_on_the_launchers(name: str, tmp_path: Path) -> None:
    arguments, folders = RUNS[name]
    launched = tmp_path / "launched"
    run_pytest(arguments, {"EXPLAINFIX_LAUNCHED": str(launched)})
    kernels = set(re.findall(r"\w+_kernel", launched.read_text()))
    assert kernels, "no kernel was launched: these tests ran something else"
    for folder in folders:
        assert kernels_in(folder) <= kernels


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_launchers_read_and_write_nothing_outside(name: str) -> None:
    run_pytest(RUNS[name][0], preloaded("asan") | {"EXPLAINFIX_EMULATION": "asan"})
