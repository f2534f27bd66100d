"""The CUDA kernels on a card, against float64. Without one they run in tests/emulation."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.random_conv import FAMILIES, KernelCase, Sizes, kernel_case

import explainfix_ext as efx
from explainfix_ext.ops import binaries
from explainfix_ext.ops import fixed_conv2d as ops
from explainfix_ext.ops.plans.plan import INDEX, LOW_RANK_TF32, PLANS, make_plan

pytestmark = pytest.mark.cuda
# z, coefficients and result are rounded once each.
ROUNDINGS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
TF32 = 2e-3


@pytest.fixture(autouse=True)
def _kernels_are_there() -> None:
    """Else these tests would test torch."""
    assert binaries.LOADED["cuda"], binaries.REASON.get("cuda")


def check(case: KernelCase, tolerance: float, code: int | None = None) -> None:
    for name, got, want in zip(("y", "dx"), case.run(code), case.by_torch(torch.float64), strict=True):
        assert got.dtype == case.x.dtype
        error = relative_error(got, want)
        assert error <= tolerance, f"{name} of {case}: {error:.1e}"


def random_case(seed: int, family: str, dtype: torch.dtype) -> KernelCase:
    rng = random.Random(f"{family} {seed}")
    torch.manual_seed(seed)
    kernel, stride = rng.choice([3, 3, 5, 7]), rng.choice([1, 1, 2])
    groups = rng.choice([1, 1, 2])
    channels, outputs = (8 * rng.randint(1, 20) for _ in range(2))
    if rng.random() < 0.2:  # those that the kernels leave to the dense plan
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


def product_case(rank: int, kernel: int, outputs: int, dtype: torch.dtype, stride: int = 1) -> KernelCase:
    """Functions of the DCT, at a size that fills the card: 128 outputs a block where there are so many."""
    basis = efx.dct_basis((kernel, kernel))[efx.frequency_order((kernel, kernel))[:rank]]
    bank = efx.FilterBank(basis, coeff=torch.randn(outputs, 128, rank))
    sizes = Sizes(128, outputs, 1, kernel, stride, (kernel // 2, kernel // 2), 32, (28, 28))
    return kernel_case(random.Random(0), "low_rank", sizes, bank, dtype, device="cuda", channels_last=1.0, bias=0.0)


def kernels_of(case: KernelCase, code: int | None = None) -> str:
    """The names of the kernels that a call runs."""
    case.run(code)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        case.run(code)
        torch.cuda.synchronize()
    return " ".join(event.key for event in profile.key_averages())


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_equals_float64_on_random_geometry(family: str, dtype: torch.dtype) -> None:
    # flags() turns cuDNN off, so that what falls to the dense plan is as exact as can be.
    with torch.backends.cudnn.flags(allow_tf32=False):
        for seed in range(60):
            check(random_case(seed, family, dtype), ROUNDINGS[dtype])


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
def test_other_words_than_pythons_reach_nothing_outside(dtype: torch.dtype) -> None:
    """An access outside is an error of the device; compute-sanitizer sees it where the device does not."""
    for seed in range(30):
        case = random_case(seed, "index", dtype)
        packed = case.plan.packed
        assert packed is not None
        words = torch.randint(-(2**31), 2**31, packed.shape, dtype=torch.int32, device="cuda") >> 8 * (seed % 4)
        packed.copy_(words.where(torch.rand(packed.shape, device="cuda") < [1, 0.1, 0.001][seed % 3], packed))
        case.run()
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
def test_too_few_words_are_refused(dtype: torch.dtype) -> None:
    case = product_case(4, 3, 64, dtype)
    bank = efx.make_bank("dct2", 64, 128, 3, seed=0, density=0.1).to("cuda")
    words = torch.zeros(600, dtype=torch.int32, device="cuda")
    with pytest.raises(RuntimeError, match="packed must have 1585 words at least for this convolution, got 600"):
        ops.fixed_conv2d(case.x, bank.basis, bank.steering, words, None, *case.geometry, 1.0, INDEX)


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("outputs", [64, 128, 264])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_low_rank_of_products_equals_float64(kernel: int, outputs: int, dtype: torch.dtype) -> None:
    with torch.backends.cudnn.flags(allow_tf32=False):
        for rank in (1, 2, 4, 7):
            for stride in (1, 2):
                check(product_case(rank, kernel, outputs, dtype, stride), ROUNDINGS[dtype])
            if dtype == torch.float32:
                check(product_case(rank, kernel, outputs, dtype), TF32, LOW_RANK_TF32)


def test_each_plan_runs_its_kernel() -> None:
    for dtype, product in ((torch.bfloat16, "Bf16"), (torch.float16, "Fp16"), (torch.float32, "Fp32")):
        assert f"low_rank_kernel<explainfix::device::{product}Product" in kernels_of(product_case(4, 3, 256, dtype))
    names = kernels_of(product_case(4, 3, 256, torch.float32), LOW_RANK_TF32)
    assert "low_rank_kernel<explainfix::device::Tf32Product, 128" in names
    for family in ("index", "depthwise"):
        groups = 128 if family == "depthwise" else 1
        bank = efx.make_bank("dct2", 128, 128, 3, groups=groups, seed=0, density=0.1).to("cuda")
        for layout_ in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(8, 128, 28, 28, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=layout_)
            case = KernelCase(x, torch.randn_like(x), bank, None, 1, (1, 1), groups, family)
            assert ("sparse_index_kernel" if family == "index" else "depthwise_kernel") in kernels_of(case)


def test_low_rank_with_tf32_equals_float64() -> None:
    for seed in range(60):
        check(random_case(seed, "low_rank", torch.float32), TF32, LOW_RANK_TF32)


def test_float32_reads_all_its_bits_unless_tf32_is_allowed() -> None:
    bank = efx.make_bank("ghaar4_s1", 64, 64, 3, seed=0).to("cuda")
    x = torch.randn(2, 64, 20, 20, device="cuda").contiguous(memory_format=torch.channels_last)
    want = F.conv2d(x.double(), bank.weight(torch.float64, "cuda"), padding=1)
    errors = {}
    for allowed in (False, True):
        with torch.backends.cudnn.flags(allow_tf32=allowed):
            errors[allowed] = relative_error(efx.fixed_conv2d(x, bank, padding=1, plan="low_rank"), want)
    assert errors[False] < ROUNDINGS[torch.float32] < errors[True] < TF32


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_runs_in_a_graph_and_on_another_stream(family: str) -> None:
    case = random_case(3, family, torch.bfloat16)
    want = case.run()[0]  # its plan is made here
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = case.run()[0]
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, want)

    kept = case.x.clone(memory_format=torch.preserve_format)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = case.run()[0]
    case.x.zero_()
    graph.replay()
    assert not torch.equal(y, want)
    case.x.copy_(kept)
    graph.replay()
    assert torch.equal(y, want)


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
    plan, density = ("index", 0.1) if init == "dct2" else ("low_rank", 1.0)
    conv = efx.FixedConv2d(64, 128, 3, padding=1, init=init, seed=0, density=density, device="cuda", plan=plan)
    x = torch.randn(4, 64, 28, 28, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    want = conv.to_conv2d()(x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype):
            y = conv(x)
            compiled = torch.compile(conv, fullgraph=True)(x)
        assert y.dtype == compiled.dtype == dtype
        assert conv._held.plans[dtype].name == plan
        assert relative_error(y, want) < 2 * ROUNDINGS[dtype]
        assert relative_error(compiled, want) < 2 * ROUNDINGS[dtype]
        y.float().square().sum().backward()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_tensor_of_more_than_2_to_the_31_elements(family: str) -> None:
    """Its last image is computed as one that is alone."""
    channels, size = 64, 512
    images = 2**31 // (channels * size**2) + 2
    if torch.cuda.mem_get_info()[0] < 3 * 2 * images * channels * size**2:
        pytest.skip("the card has too little free memory")
    groups = channels if family == "depthwise" else 1
    init = "ghaar4_s1" if family == "low_rank" else "dct2"
    bank = efx.make_bank(init, channels, channels, 3, groups=groups, seed=0, density=0.1).to("cuda")
    last = torch.randn(1, channels, size, size, device="cuda", dtype=torch.bfloat16)
    x = torch.empty(images, size, size, channels, device="cuda", dtype=torch.bfloat16).permute(0, 3, 1, 2)
    x[-1] = last[0]
    assert x.numel() > 2**31
    last = last.contiguous(memory_format=torch.channels_last)
    y, want = (efx.fixed_conv2d(t, bank, padding=1, groups=groups, plan=family) for t in (x, last))
    assert torch.equal(y[-1], want[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_plan_is_the_kernels(family: str) -> None:
    case = random_case(1, family, torch.bfloat16)
    steps = (case.stride, case.stride)
    plan = make_plan(case.bank, torch.bfloat16, stride=steps, groups=case.groups, force=family)
    assert plan.code == PLANS[family]
    assert plan.packed is None or plan.packed.device.type == "cuda"
