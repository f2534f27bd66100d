"""Harness B: device "cuda" on a card that is not there, and the binary that nvcc built.

torch's own CUDA code runs (guards, streams, autocast, the backward pass on a thread of its own) over a runtime of ours,
which has the limits of a chosen card. Kernels of explainfix_ext run in the emulation, torch's operators on the CPU.
Where nvcc's binary was not built, the launchers as g++ compiled them take its place. Tests marked `cuda` run so, except
those of torch.compile, CUDA graphs and the profiler:

    PYTHONPATH=tests python tests/emulation/binary/test_binary.py nvcc "RTX 4090" -m cuda tests/nn
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from emulation.binary.environment import environment
from emulation.launchers.library import CARDS
from support.paths import ROOT

# What a card that is not there cannot do, and what takes long: convolutions of many channels by torch, on the CPU.
IMPOSSIBLE = "not in_a_graph and not runs_its_kernel and not runs_the_kernel and not compiles"
LONG = "not index and not low_rank and not by_eights"
OPS = [f"tests/ops/test_{name}.py" for name in ("passes", "fixed_conv2d", "cuda_kernels", "hadamard_cuda")]
RUNS = {
    "steps": ["tests/emulation/binary/on_card.py"],
    "ops": [*OPS, "-m", "cuda", "-k", f"{IMPOSSIBLE} and {LONG}"],
}


def run_pytest(
    binary: str, card: str, arguments: list[str], *, capture_output: bool = True
) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "EXPLAINFIX_CUDA_BINARY": binary}
    command = [sys.executable, "-m", "pytest", "-p", "emulation.binary.plugin", "-p", "no:cacheprovider", "-q"]
    env |= environment(CARDS[card])
    return subprocess.run([*command, *arguments], env=env, capture_output=capture_output, text=True, cwd=ROOT)


def check(binary: str, card: str, name: str) -> None:
    run = run_pytest(binary, card, RUNS[name])
    said = run.stdout + run.stderr
    assert run.returncode == 0, said[-6000:] or "it ended silently: a launcher called a __device__ function"


@pytest.mark.parametrize("name", RUNS)
def test_launchers_on_a_card_that_is_not_there(name: str) -> None:
    check("launchers", "H100", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("card", ["A100", "RTX 4090"])
def test_the_binary_on_a_card_that_is_not_there(card: str, name: str) -> None:
    if not list((ROOT / "explainfix_ext" / "ops").glob("_C_cu*.so")):
        pytest.skip("the CUDA kernels were not built here")
    check("nvcc", card, name)


if __name__ == "__main__":
    sys.exit(run_pytest(sys.argv[1], sys.argv[2], sys.argv[3:], capture_output=False).returncode)
