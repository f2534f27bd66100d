"""A layer says which kernel runs it: on its device, in the dtype that it runs in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.fake_cuda import on_fake_cuda

from explainfix_ext import FixedConv2d
from explainfix_ext.ops import binaries
from explainfix_ext.ops.plans.plan import DENSE_PLAN, INDEX, ConvPlan

DEPTHWISE: dict[str, Any] = {"in_channels": 32, "out_channels": 32, "kernel_size": 3, "groups": 32}


def test_in_the_dtype_of_autocast() -> None:
    conv = FixedConv2d(4, 8, 3, seed=0)
    conv._held.plans = {torch.float32: ConvPlan(INDEX, "index"), torch.bfloat16: DENSE_PLAN}
    assert conv.kernel_plan.name == "index"
    with torch.autocast("cpu", torch.bfloat16):
        assert conv.kernel_plan.name == "dense"


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        (DEPTHWISE, "depthwise"),
        (DEPTHWISE | {"plan": "depthwise"}, "depthwise"),
        (DEPTHWISE | {"init": "ghaar4_s1", "kernel_size": 7, "stride": 2}, "depthwise"),
        (DEPTHWISE | {"dtype": torch.float64}, "dense"),
        (DEPTHWISE | {"plan": "depthwise", "kernel_size": 9}, "dense"),
        (DEPTHWISE | {"plan": "depthwise", "dilation": 2}, "dense"),
        (DEPTHWISE | {"plan": "depthwise", "out_channels": 64}, "dense"),
        ({"in_channels": 8, "out_channels": 16, "kernel_size": 3, "init": "hadamard"}, "hadamard"),
        ({"in_channels": 8, "out_channels": 16, "kernel_size": 5, "init": "hadamard", "plan": "hadamard"}, "dense"),
        ({"in_channels": 8, "out_channels": 8, "kernel_size": 3, "plan": "index"}, "dense"),
        ({"in_channels": 8, "out_channels": 8, "kernel_size": 3, "init": "ghaar4_s1", "plan": "low_rank"}, "dense"),
    ],
    ids=str,
)
def test_on_a_gpu(options: dict[str, Any], kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.LOADED, "cuda", "a binary")
    conv = FixedConv2d(**({"init": "dct2", "seed": 0} | options))
    with on_fake_cuda(conv):
        assert conv.kernel_plan.name == kernel
