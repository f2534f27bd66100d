"""What the compiler made of the CUDA kernels, where the binary was built: no GPU is needed."""

from __future__ import annotations

import sys

import pytest
from support.paths import BENCH, ROOT

sys.path.insert(0, str(BENCH))
import sass

KERNELS = ["depthwise_kernel", "materialize_index_kernel", "materialize_coeff_kernel", "max_pool_kernel"]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    binaries = sorted((ROOT / "explainfix_ext" / "ops").glob("_C_cu*.so"))
    if not binaries:
        pytest.skip("the CUDA kernels were not built here")
    if sass.find_cuobjdump() is None:
        pytest.skip("no cuobjdump here: it comes with the CUDA toolkit, and with triton")
    return sass.read_binary(binaries[0])


def test_no_kernel_uses_local_memory(rows: list[dict]) -> None:
    assert not [row for row in rows if sass.spills(row)]


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_there(rows: list[dict], name: str) -> None:
    assert [row for row in rows if name in row["kernel"]]
