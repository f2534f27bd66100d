"""The numbers of the layouts of `packed`: Python's packers write what csrc/shared/packed_layout.h says."""

from __future__ import annotations

import re

import pytest
from support.paths import CSRC

from explainfix_ext.ops.plans import (
    pack_cpu_index,
    pack_cuda_depthwise,
    quad_lists,
)

HEADER = CSRC / "shared" / "packed_layout.h"
PYTHON = {
    "kIndexHeaderWords": pack_cpu_index.HEADER_WORDS,
    "kIndexSectionWords": pack_cpu_index.SECTION_WORDS,
    "kIndexBlockWords": pack_cpu_index.BLOCK_WORDS,
    "kIndexSegmentWords": pack_cpu_index.SEGMENT_WORDS,
    "kIndexOpWords": pack_cpu_index.OP_WORDS,
    "kIndexQuadListWords": quad_lists.QUAD_LIST_WORDS,
    "kIndexQuadWords": quad_lists.QUAD_WORDS,
    "kIndexQuadOutputs": quad_lists.QUAD_OUTPUTS,
    "kIndexChunkOutputs": pack_cpu_index.CHUNK_OUTPUTS,
    "kIndexSquare": pack_cpu_index.SQUARE,
    "kStride2SectionWords": pack_cpu_index.STRIDE2_SECTION_WORDS,
    "kStride2BlockWords": pack_cpu_index.STRIDE2_BLOCK_WORDS,
    "kStride2Outputs": pack_cpu_index.STRIDE2_OUTPUTS,
    "kDepthwiseSeparableFrom": pack_cuda_depthwise.SEPARABLE_FROM,
}


def header_constants() -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"constexpr int (k\w+) = (\d+);", HEADER.read_text())}


def test_each_constant_of_the_header_is_compared() -> None:
    assert set(header_constants()) == set(PYTHON)


@pytest.mark.parametrize("name", PYTHON)
def test_python_and_cpp_agree(name: str) -> None:
    assert header_constants()[name] == PYTHON[name]


def test_no_other_header_defines_a_layout_constant() -> None:
    """One source of truth: a second definition elsewhere in csrc would not be compared."""
    others = [path for path in HEADER.parents[1].rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    for path in set(others) - {HEADER}:
        defined = set(re.findall(r"constexpr \w+ (k\w+) =", path.read_text()))
        assert not defined & set(PYTHON), path
