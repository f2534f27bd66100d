"""What a card runs of a hadamard bank, and how. test_hadamard_conv2d.py compares its numbers with float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.on_card import check_autocast_and_compile, check_graph_and_stream, check_last_image
from support.random_conv import Case, with_any_places

import explainfix_ext as efx
from explainfix_ext.ops import binaries
from explainfix_ext.ops.plans.plan import make_plan

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _kernels_are_there() -> None:
    """Else these tests would test torch."""
    assert binaries.LOADED["cuda"], binaries.REASON.get("cuda")


def of_layer(channels: int = 256, size: int = 14) -> Case:
    x = torch.randn(8, channels, size, size, device="cuda", dtype=torch.bfloat16)
    bank = efx.make_bank("hadamard", channels, channels, 3, seed=0).to("cuda")
    return Case(x.contiguous(memory_format=torch.channels_last), bank, None, {"padding": 1})


def run(case: Case) -> torch.Tensor:
    return efx.fixed_conv2d(case.x, case.bank, case.bias, **case.geometry, plan=case.plan)


def test_auto_runs_the_kernel() -> None:
    case = of_layer()
    x = case.x.requires_grad_()
    run(case)  # its plan is made here
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(case).sum().backward()
        torch.cuda.synchronize()
    names = [event.key for event in profile.key_averages()]
    assert sum("hadamard_kernel" in name for name in names) == 1  # of both directions: the same kernel
    assert not any("fprop" in name or "dgrad" in name for name in names)
    assert x.grad is not None


def test_filters_with_places_in_any_order_run_dense() -> None:
    case = of_layer(64)
    case = replace(case, bank=with_any_places(case.bank.to("cpu")).to("cuda"))
    case.check()
    assert make_plan(case.bank, torch.bfloat16).name == "dense"


def test_kernel_runs_in_a_graph_and_on_another_stream() -> None:
    case = of_layer()
    check_graph_and_stream(lambda: run(case), case.x)


def test_layer_trains_under_autocast_and_compiles() -> None:
    conv = efx.FixedConv2d(64, 64, 3, padding=1, init="hadamard", seed=0, device="cuda")
    check_autocast_and_compile(conv, {torch.bfloat16: 1e-2, torch.float16: 1e-2})


def test_tensor_of_more_than_2_to_the_31_elements() -> None:
    case = of_layer(64)
    check_last_image(lambda x: run(replace(case, x=x)), 64)
