"""What plan "auto" chooses for a GPU, and what it packs: no GPU is needed to decide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import explainfix_ext as efx
from explainfix_ext.ops import binaries
from explainfix_ext.ops.plans import cuda
from explainfix_ext.ops.plans.bank_facts import factors_of
from explainfix_ext.ops.plans.pack_cuda_low_rank import pack_low_rank
from explainfix_ext.ops.plans.plan import LOW_RANK, ConvPlan, check_plan

ONE = (1, 1)


@pytest.fixture(autouse=True)
def _built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.LOADED, "cuda", "a binary")


@pytest.fixture
def _tf32_afterwards() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision = before


def fastest(bank: efx.FilterBank, dtype=torch.bfloat16, stride=ONE, dilation=ONE, groups=1) -> str:
    return cuda.fastest(bank, dtype, stride, dilation, groups)


def bank(init: str = "dct2", outputs: int = 256, channels: int = 256, kernel=3, **options) -> efx.FilterBank:
    return efx.make_bank(init, outputs, channels, kernel, seed=0, **options)


def test_plan_follows_the_crossovers() -> None:
    assert fastest(bank(density=0.1)) == "index"
    assert fastest(bank(density=0.5)) == "dense"
    assert fastest(bank(outputs=32, density=0.1)) == "dense"
    assert fastest(bank("ghaar4_s1")) == "low_rank"
    assert fastest(bank("ghaar4_s1", channels=32)) == "dense"
    assert fastest(bank("ghaar")) == "dense"  # 8 of 9 functions
    assert fastest(bank("ghaar4_s1", kernel=5), stride=(2, 2)) == "low_rank"
    for init in ("dct2", "ghaar4_s1"):
        assert fastest(bank(init, channels=256, groups=256), groups=256) == "depthwise"
    assert fastest(bank(outputs=512, channels=256, groups=256), groups=256) == "dense"  # two filters a channel


@pytest.mark.parametrize(
    "geometry", [{"dtype": torch.float64}, {"dilation": (2, 2)}, {"stride": (1, 2)}, {"stride": (3, 3)}], ids=str
)
def test_what_no_kernel_does_is_dense(geometry: dict) -> None:
    for init in ("dct2", "ghaar4_s1"):
        assert fastest(bank(init, density=0.05), **geometry) == "dense"
    assert fastest(bank("ghaar4_s1", kernel=(3, 5))) == "dense"


def test_negatives_of_functions_are_dense() -> None:
    signed = bank("sdct4", density=0.05)
    assert fastest(signed) == "dense"
    assert not cuda.fits("index", signed, torch.float32, ONE, ONE, 1)


def test_without_a_binary_all_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.LOADED, "cuda", None)
    assert fastest(bank("ghaar4_s1")) == "dense"


def test_low_rank_packing_is_made_at_first_use_also_under_a_tracer() -> None:
    conv = efx.FixedConv2d(16, 32, 3, init="ghaar4_s1", seed=0)
    conv._held.plans = {torch.float32: ConvPlan(LOW_RANK, "low_rank", late=True)}
    expected = pack_low_rank(conv.bank.steering, factors_of(conv.bank), torch.float32, 1)
    x = torch.randn(1, 16, 8, 8)
    want = conv.to_conv2d()(x)
    torch.testing.assert_close(torch.compile(conv, fullgraph=True, backend="eager")(x), want)
    assert conv.kernel_plan.late
    with torch.inference_mode():
        torch.testing.assert_close(conv(x), want)
    assert torch.equal(conv.kernel_plan.packed, expected)
    assert not conv.kernel_plan.packed.is_inference()


@pytest.mark.usefixtures("_tf32_afterwards")
def test_tf32_is_allowed_where_torch_allows_it() -> None:
    for allowed in (False, True):
        with torch.backends.cudnn.flags(allow_tf32=allowed):
            assert cuda.tf32_allowed() == allowed
    for precision in ("ieee", "tf32"):
        torch.backends.cudnn.conv.fp32_precision = precision
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
        assert cuda.tf32_allowed() == (precision == "tf32")


def test_depthwise_of_coefficients_is_for_a_gpu_only() -> None:
    with pytest.raises(ValueError, match="plan 'depthwise' needs an index bank with one input channel a group"):
        check_plan("depthwise", bank("ghaar4_s1", groups=256), 256)
