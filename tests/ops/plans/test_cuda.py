"""What runs a bank on a GPU: no GPU is needed to decide."""

from __future__ import annotations

import pytest
import torch

import explainfix_ext as efx
from explainfix_ext.ops import binaries
from explainfix_ext.ops.plans import cuda
from explainfix_ext.ops.plans.plan import check_plan

ONE = (1, 1)


@pytest.fixture(autouse=True)
def _built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.LOADED, "cuda", "a binary")


def fastest(bank: efx.FilterBank, dtype=torch.bfloat16, stride=ONE, dilation=ONE, groups=1) -> str:
    return cuda.fastest(bank, dtype, stride, dilation, groups)


def bank(init: str = "dct2", outputs: int = 256, channels: int = 256, kernel=3, **options) -> efx.FilterBank:
    return efx.make_bank(init, outputs, channels, kernel, seed=0, **options)


@pytest.mark.parametrize("init", ["dct2", "sdct4", "ghaar4_s1"])
def test_one_filter_a_channel_is_depthwise_and_all_else_dense(init: str) -> None:
    assert fastest(bank(init, density=0.1)) == "dense"
    assert fastest(bank(init, outputs=256, groups=256), groups=256) == "depthwise"
    assert fastest(bank(init, kernel=7, groups=256), stride=(2, 2), groups=256) == "depthwise"
    assert fastest(bank(init, outputs=512, groups=256), groups=256) == "dense"  # two filters a channel


@pytest.mark.parametrize("name", ["index", "low_rank", "hadamard", "depthwise"])
def test_plan_that_has_no_kernel_here_does_not_fit(name: str) -> None:
    assert not cuda.fits(name, bank({"low_rank": "ghaar4_s1"}.get(name, "dct2")), torch.float32, ONE, ONE, 1)


@pytest.mark.parametrize(
    "geometry", [{"dtype": torch.float64}, {"dilation": (2, 2)}, {"stride": (1, 2)}, {"stride": (3, 3)}], ids=str
)
def test_what_no_kernel_does_is_dense(geometry: dict) -> None:
    single = bank(groups=256)
    assert fastest(single, groups=256, **geometry) == "dense"
    assert not cuda.fits(
        "depthwise", single, **{"dtype": torch.half, "stride": ONE, "dilation": ONE} | geometry, groups=256
    )
    for kernel in ((3, 5), 9):
        assert fastest(bank("ghaar4_s1", kernel=kernel, groups=256), groups=256) == "dense"


def test_without_a_binary_all_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.LOADED, "cuda", None)
    assert fastest(bank(groups=256), groups=256) == "dense"


def test_depthwise_of_coefficients_is_for_a_gpu_only() -> None:
    with pytest.raises(ValueError, match="plan 'depthwise' needs an index bank with one input channel a group"):
        check_plan("depthwise", bank("ghaar4_s1", groups=256), 256)
