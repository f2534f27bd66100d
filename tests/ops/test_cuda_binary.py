"""What the compiler made of the CUDA kernels, where the binary was built: no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import BENCH, ROOT

sys.path.insert(0, str(BENCH))
import sass

KERNELS = ["depthwise_kernel", "materialize_index_kernel", "materialize_coeff_kernel", "max_pool_kernel"]


@pytest.fixture(scope="module")
def binaries() -> list[Path]:
    found = sorted((ROOT / "explainfix_ext" / "ops").glob("_C_cu*.so"))
    if not found:
        pytest.skip("the CUDA kernels were not built here")
    return found


@pytest.fixture(scope="module")
def rows(binaries: list[Path]) -> list[dict]:
    if sass.find_cuobjdump() is None:
        pytest.skip("no cuobjdump here: it comes with the CUDA toolkit, and with triton")
    return sass.read_binary(binaries[0])


def test_no_kernel_uses_local_memory(rows: list[dict]) -> None:
    assert not [row for row in rows if sass.spills(row)]


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_there(rows: list[dict], name: str) -> None:
    assert [row for row in rows if name in row["kernel"]]


def test_no_launcher_calls_a_function_of_the_card(binaries: list[Path]) -> None:
    """What a __device__ function does on the host is exit(1); in a template nvcc lets it be called there, silently."""
    symbols = subprocess.run(["nm", "-D", "--undefined-only", binaries[0]], capture_output=True, text=True, check=True)
    assert not [line for line in symbols.stdout.splitlines() if line.split()[-1].split("@")[0] == "exit"]
