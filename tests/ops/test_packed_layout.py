"""The numbers of the layouts of `packed`: Python's packers write what csrc/shared/packed_layout.h says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from explainfix_ext import packing, packing_cuda, packing_depthwise, packing_low_rank

HEADER = Path(__file__).parents[2] / "csrc" / "shared" / "packed_layout.h"
PYTHON = {
    "kIndexHeaderWords": packing.HEADER_WORDS,
    "kIndexSectionWords": packing.SECTION_WORDS,
    "kIndexBlockWords": packing.BLOCK_WORDS,
    "kIndexSegmentWords": packing.SEGMENT_WORDS,
    "kIndexOpWords": packing.OP_WORDS,
    "kIndexQuadListWords": packing.QUAD_LIST_WORDS,
    "kIndexQuadWords": packing.QUAD_WORDS,
    "kIndexQuadOutputs": packing.QUAD_OUTPUTS,
    "kIndexChunkOutputs": packing.CHUNK_OUTPUTS,
    "kStride2SectionWords": packing.STRIDE2_SECTION_WORDS,
    "kStride2BlockWords": packing.STRIDE2_BLOCK_WORDS,
    "kStride2Outputs": packing.STRIDE2_OUTPUTS,
    "kSparseBlockWords": packing_cuda.BLOCK_WORDS,
    "kSparseRows": packing_cuda.ROWS,
    "kSparseBanks": packing_cuda.BANKS,
    "kSparseListOutputs": packing_cuda.OUTPUTS,
    "kSparseStepRows": packing_cuda.STEP_ROWS,
    "kSparseStepWords": packing_cuda.STEP_WORDS,
    "kSparseChannelAlign": packing_cuda.CHANNEL_ALIGN,
    "kSparsePitch3x3": packing_cuda.PITCH_3X3,
    "kSparsePitchLarger": packing_cuda.PITCH_LARGER,
    "kLowRankStepBytes": packing_low_rank.STEP_BYTES,
    "kLowRankOutputs": packing_low_rank.OUTPUTS,
    "kLowRankFactorMultiple": packing_low_rank.FACTOR_MULTIPLE,
    "kDepthwiseSeparableFrom": packing_depthwise.SEPARABLE_FROM,
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
