"""What a card runs of a hadamard bank, and how. test_hadamard_conv2d.py compares its numbers with float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
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
    want = run(case)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = run(case)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, want)

    kept = case.x.clone(memory_format=torch.preserve_format)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(case)
    case.x.zero_()
    graph.replay()
    assert not torch.equal(y, want)
    case.x.copy_(kept)
    graph.replay()
    assert torch.equal(y, want)


def test_layer_trains_under_autocast_and_compiles() -> None:
    conv = efx.FixedConv2d(64, 64, 3, padding=1, init="hadamard", seed=0, device="cuda")
    x = torch.randn(4, 64, 28, 28, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    want = conv.to_conv2d()(x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype):
            y = conv(x)
            compiled = torch.compile(conv, fullgraph=True)(x)
        assert y.dtype == compiled.dtype == dtype
        for got in (y, compiled):
            assert ((got - want).norm() / want.norm()).item() < 1e-2
        y.float().square().sum().backward()
        assert torch.isfinite(x.grad).all()


def test_tensor_of_more_than_2_to_the_31_elements() -> None:
    """Its last image is computed as one that is alone."""
    channels, size = 64, 512
    images = 2**31 // (channels * size**2) + 2
    if torch.cuda.mem_get_info()[0] < 3 * 2 * images * channels * size**2:
        pytest.skip("the card has too little free memory")
    last = of_layer(channels, size).x[-1:].contiguous(memory_format=torch.channels_last)
    x = torch.empty(images, size, size, channels, device="cuda", dtype=torch.bfloat16).permute(0, 3, 1, 2)
    x[-1] = last[0]
    case = of_layer(channels)
    assert torch.equal(run(replace(case, x=x))[-1], run(replace(case, x=last))[0])
