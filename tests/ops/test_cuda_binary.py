"""What the compiler made of the CUDA kernels, where the binary was built: no GPU is needed."""

from __future__ import annotations

import sys

import pytest
from support.paths import BENCH, ROOT

sys.path.insert(0, str(BENCH))
import sass

KERNELS = ["low_rank_kernel", "sparse_index_kernel", "depthwise_kernel"]


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


def test_low_rank_multiplies_on_tensor_cores_and_copies_in_the_background(rows: list[dict]) -> None:
    found = [row for row in rows if "low_rank_kernel" in row["kernel"]]
    for row in found:
        strict = "Fp32Product" in row["kernel"]
        assert row["LDGSTS"] > 0
        assert strict == (row["HMMA"] == 0), row["kernel"]
        assert strict == (row["LDSM"] == 0), row["kernel"]
        assert strict <= (row["FFMA"] >= 128), row["kernel"]
