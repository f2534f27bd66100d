"""The CUDA kernels of convolutions on a card, against float64. Without one they run in tests/emulation.

Of the families, "depthwise" has a kernel; for "index" and "low_rank" a kernel composes the weight of the dense plan.
"""

from __future__ import annotations

import random

import pytest
import torch
from support.compare import relative_error
from support.on_card import check_autocast_and_compile, check_graph_and_stream, check_last_image
from support.random_conv import FAMILIES, KernelCase, Sizes, kernel_case

import explainfix_ext as efx
from explainfix_ext.ops import binaries
from explainfix_ext.ops.plans.plan import make_plan

pytestmark = pytest.mark.cuda
# Weight and result are rounded once each.
ROUNDINGS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


@pytest.fixture(autouse=True)
def _kernels_are_there() -> None:
    """Else these tests would test torch."""
    assert binaries.LOADED["cuda"], binaries.REASON.get("cuda")


def check(case: KernelCase, tolerance: float) -> None:
    for name, got, want in zip(("y", "dx"), case.run(), case.by_torch(torch.float64), strict=True):
        assert got.dtype == case.x.dtype
        error = relative_error(got, want)
        assert error <= tolerance, f"{name} of {case}: {error:.1e}"


def random_case(seed: int, family: str, dtype: torch.dtype) -> KernelCase:
    rng = random.Random(f"{family} {seed}")
    torch.manual_seed(seed)
    kernel, stride = rng.choice([3, 3, 5, 7]), rng.choice([1, 1, 2])
    groups = rng.choice([1, 1, 2])
    channels, outputs = (8 * rng.randint(1, 20) for _ in range(2))
    if rng.random() < 0.2:
        channels, outputs = rng.randint(1, 30), rng.randint(1, 30)
    if family == "depthwise":
        groups, channels, outputs = rng.randint(2, 150), 1, 1
    options = {"groups": groups, "seed": seed}
    if family == "low_rank":
        init, options["shared_basis"] = "ghaar_r_ms", rng.randint(1, 9)
    else:
        init, options["density"] = "dct2", rng.choice([1.0, 0.2, 0.05])
    bank = efx.make_bank(init, groups * outputs, groups * channels, kernel, **options)
    size = (rng.randint(kernel, 40), rng.randint(kernel, 40))
    padding = (rng.randint(0, kernel - 1), rng.randint(0, kernel - 1))
    batch = rng.randint(1, 5)
    sizes = Sizes(groups * channels, groups * outputs, groups, kernel, stride, padding, batch, size)
    return kernel_case(rng, family, sizes, bank, dtype, device="cuda", channels_last=0.6)


def kernels_of(case: KernelCase) -> str:
    """The names of the kernels that a call runs."""
    case.run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        case.run()
        torch.cuda.synchronize()
    return " ".join(event.key for event in profile.key_averages())


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_equals_float64_on_random_geometry(family: str, dtype: torch.dtype) -> None:
    # flags() turns cuDNN off, so that what the dense plan does is as exact as can be.
    with torch.backends.cudnn.flags(allow_tf32=False):
        for seed in range(60):
            check(random_case(seed, family, dtype), ROUNDINGS[dtype])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_plan_runs_its_kernel(family: str) -> None:
    groups = 128 if family == "depthwise" else 1
    init = "ghaar4_s1" if family == "low_rank" else "dct2"
    bank = efx.make_bank(init, 128, 128, 3, groups=groups, seed=0).to("cuda")
    for layout_ in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(8, 128, 28, 28, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=layout_)
        case = KernelCase(x, torch.randn_like(x), bank, None, 1, (1, 1), groups, family)
        name = {"depthwise": "depthwise_kernel", "low_rank": "materialize_coeff_kernel"}
        assert name.get(family, "materialize_index_kernel") in kernels_of(case)


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_runs_in_a_graph_and_on_another_stream(family: str) -> None:
    case = random_case(3, family, torch.bfloat16)
    check_graph_and_stream(lambda: case.run()[0], case.x)


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_is_deterministic(family: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        case = random_case(5, family, torch.float16)
        assert torch.equal(case.run()[0], case.run()[0])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("init", ["dct2", "ghaar4_s1"])
def test_layer_trains_under_autocast_and_compiles(init: str) -> None:
    conv = efx.FixedConv2d(64, 128, 3, padding=1, init=init, seed=0, device="cuda")
    check_autocast_and_compile(conv, {t: 2 * ROUNDINGS[t] for t in (torch.bfloat16, torch.float16)})


def test_tensor_of_more_than_2_to_the_31_elements() -> None:
    bank = efx.make_bank("dct2", 64, 64, 3, groups=64, seed=0).to("cuda")
    check_last_image(lambda x: efx.fixed_conv2d(x, bank, padding=1, groups=64, plan="depthwise"), 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_plan_names_what_runs(family: str) -> None:
    case = random_case(1, family, torch.bfloat16)
    steps = (case.stride, case.stride)
    plan = make_plan(case.bank, torch.bfloat16, stride=steps, groups=case.groups, force=family)
    assert plan.name == (family if family == "depthwise" else "dense")
    assert plan.packed is None or plan.packed.device.type == "cuda"
