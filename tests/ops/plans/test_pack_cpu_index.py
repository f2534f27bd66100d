"""pack_index: the negatives of functions share their rows of z, few rows are padding, words of before still run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.compare import relative_error
from support.random_conv import KernelCase

import explainfix_ext as efx
from explainfix_ext.ops import binaries
from explainfix_ext.ops.plans import pack_cpu_index as layout
from explainfix_ext.ops.plans import quad_lists
from explainfix_ext.ops.plans.bank_facts import SignedDct, signed_dct
from explainfix_ext.ops.plans.cpu import packed_index
from explainfix_ext.ops.plans.plan import ConvPlan, make_plan

pytestmark = pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels")


def blocks_of(packed: torch.Tensor, at: int) -> np.ndarray:
    """The blocks of the section that begins `at` a word, of one group."""
    words = packed.numpy()
    begin = at + layout.SECTION_WORDS + 2
    return words[begin : begin + layout.BLOCK_WORDS * words[at + 1]].reshape(-1, layout.BLOCK_WORDS)


def listed(packed: torch.Tensor, block: np.ndarray, chunks: int) -> tuple[int, int]:
    """Rows that a block's quads add, and that they subtract, padding included."""
    words, total = packed.numpy(), np.zeros(2, np.int64)
    for quads, at, _ in words[block[6] :][: quad_lists.QUAD_LIST_WORDS * chunks].reshape(
        -1, quad_lists.QUAD_LIST_WORDS
    ):
        counts = words[at : at + quads * quad_lists.QUAD_WORDS : quad_lists.QUAD_WORDS]
        total += quad_lists.QUAD_OUTPUTS * np.array([(counts & 0xFFFF).sum(), (counts >> 16).sum()])
    return int(total[0]), int(total[1])


@pytest.mark.parametrize(("density", "most"), [(1.0, 1.03), (0.3, 1.15)])
def test_negatives_share_rows_and_little_is_padding(density: float, most: float) -> None:
    bank = efx.make_bank("sdct4", 128, 128, 3, seed=0, density=density)
    packed = packed_index(bank, 1, 1)
    nonzero = int(bank.nonzero.sum())
    for at in packed[:2].tolist():
        blocks = blocks_of(packed, at)
        assert (blocks[:, 2] == 4 * (blocks[:, 1] - blocks[:, 0]) + 1).all()  # z of four functions, and the zero row
        added, subtracted = np.sum([listed(packed, block, 2) for block in blocks], axis=0)
        assert nonzero <= added + subtracted <= most * nonzero
        assert abs(added - subtracted) < 0.1 * nonzero


def test_dct_functions_are_found_with_their_signs() -> None:
    number, negative = torch.randperm(25)[:12], torch.rand(12) < 0.5
    basis = efx.dct_basis((5, 5))[number] * torch.where(negative, -1.0, 1.0)[:, None, None]
    found = signed_dct(basis)
    assert isinstance(found, SignedDct)
    assert found.number.tolist() == number.tolist()
    assert found.negative.tolist() == negative.tolist()
    assert signed_dct(torch.cat([basis, torch.ones(1, 5, 5)])) is None
    assert signed_dct(efx.dct_basis((3, 5))) is None


@pytest.mark.parametrize("stride", [1, 2])
def test_words_of_before_still_run(stride: int) -> None:
    """Exported programs have them: functions go by their own number, nothing is subtracted."""
    torch.manual_seed(0)
    bank = efx.make_bank("dct2", 24, 16, 3, seed=0, density=0.7)
    x = torch.randn(2, 16, 11, 13)
    case = KernelCase(x, torch.randn(2, 24, *((11, 13) if stride == 1 else (6, 7))), bank, None, stride, (1, 1), 1, "")
    plan = make_plan(bank, x.dtype, stride=(stride, stride), force="index")
    words = layout.pack_index(bank.steering, 3, 9, 1, stride)
    assert words[2] == stride
    case.family, case.plans = "index", dict.fromkeys(binaries.ISAS, ConvPlan(plan.code, "index", words))
    for got, want in zip(case.run(), case.by_torch(torch.float64), strict=True):
        assert relative_error(got, want) < 2e-6


def test_auto_takes_the_kernels_for_signed_banks() -> None:
    for options in ({}, {"density": 0.3}, {"kernel_size": 5}):
        bank = efx.make_bank("sdct4", 32, 32, **{"kernel_size": 3, "seed": 0} | options)
        assert make_plan(bank, torch.float32).name == "index"
    depthwise = efx.make_bank("sdct4", 32, 32, 3, groups=32, seed=0)
    assert make_plan(depthwise, torch.float32, groups=32).name == "depthwise"
