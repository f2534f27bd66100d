"""The CPU's tile kernels against float64: every family, every instruction set that this machine has."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.random_conv import FAMILIES, KernelCase, Sizes, kernel_case
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.ops import binaries
from explainfix_ext.ops import fixed_conv2d as ops
from explainfix_ext.ops.binaries import ISAS, cpu_has_amx, set_cpu_isa
from explainfix_ext.ops.plans import cpu
from explainfix_ext.ops.plans.plan import PLANS, make_plan

pytestmark = pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels")
# Twice this is allowed where torch's own error is less: a sum of few terms, which torch rounds once and we thrice (two
# passes of the transform, then the sum). Up to 8 % of the small cases below need it.
FEW_ROUNDINGS = {torch.float32: 3 * 2**-24, torch.bfloat16: 2**-9}


@pytest.fixture(autouse=True)
def _best_isa_afterwards() -> Iterator[None]:
    yield
    set_cpu_isa(None)


def available_isas() -> list[str]:
    return list(ISAS[: ISAS.index(set_cpu_isa(None)) + 1])


def random_sizes(rng: random.Random, family: str) -> Sizes:
    """Small ones, with tails in every dimension."""
    kernel, stride = rng.choice([3, 3, 5, 7]), rng.choice([1, 1, 2])
    if family == "depthwise":
        groups, multiplier = rng.randint(2, 20), rng.choice([1, 1, 2])
        inputs, outputs = groups, groups * multiplier
    else:
        groups = rng.choice([1, 1, 1, 2, 5])
        largest = rng.choice([4, 20, 70]) if groups == 1 else 9
        inputs, outputs = groups * rng.randint(1, largest), groups * rng.randint(1, 2 * largest)
    padding = (rng.randint(0, kernel), rng.randint(0, kernel))
    least = 12 if family == "depthwise" else 0  # the kernel hands smaller planes to torch
    height, width = (max(kernel - 2 * p, 1) + least + rng.randint(0, rng.choice([3, 12, 40])) for p in padding)
    batch = rng.choice([0, 1, 1, 2, 3, 9])
    return Sizes(inputs, outputs, groups, kernel, stride, padding, batch, (height, width))


def wide_sizes(rng: random.Random, family: str) -> Sizes:
    """Rows that are cut into panels of columns, with tails in every dimension; some are all padding."""
    small = random_sizes(rng, family)
    if family != "depthwise":
        channels = [small.groups * rng.randint(1, 5) for _ in range(2)]
        small = replace(small, inputs=channels[0], outputs=channels[1])
    width = rng.choice([192, 193, 194, 385, rng.randint(180, 800), rng.randint(1, 20)])
    narrow = width < small.kernel or rng.random() < 0.1
    padding = (small.padding[0], rng.randint(190, 500) if narrow else small.padding[1])
    height = max(small.kernel - 2 * padding[0], 1) + rng.randint(0, 9)
    return replace(small, padding=padding, batch=rng.choice([1, 1, 2]), height_width=(height, width))


def tile_case(family: str, seed: int, draw: Callable[[random.Random, str], Sizes] = random_sizes) -> KernelCase:
    """A small convolution of random everything; the same for the same seed."""
    rng = random.Random(f"{family} {seed}")
    torch.manual_seed(seed)
    sizes = draw(rng, family)
    dtype = rng.choice([torch.float32, torch.float32, torch.bfloat16])
    bank = random_bank(rng, family, sizes.outputs, sizes.inputs // sizes.groups, sizes.kernel)
    return kernel_case(rng, family, sizes, bank, dtype)


def random_bank(rng: random.Random, family: str, outputs: int, channels: int, kernel: int) -> efx.FilterBank:
    basis = efx.dct_basis((kernel, kernel))
    if family != "depthwise" and rng.random() < 0.3:  # not separable
        basis = torch.randn(rng.randint(1, kernel * kernel), kernel, kernel, dtype=torch.float64)
    elif family == "low_rank":
        basis = basis[torch.randperm(len(basis))[: rng.randint(1, min(len(basis), 12))]]
    elif rng.random() < 0.5:  # with their negatives: those of "sdct4", or any
        low = torch.tensor([0, 1, kernel, kernel + 1])
        chosen = rng.choice([low, torch.randperm(len(basis))[: rng.randint(1, len(basis))]])
        basis = torch.cat([basis[chosen], -basis[chosen]])
    scale = rng.choice([1.0, 0.3])
    if family == "low_rank":
        return efx.FilterBank(basis, coeff=torch.randn(outputs, channels, len(basis)), scale=scale)
    index = torch.randint(len(basis), (outputs, channels), dtype=torch.uint8)
    density = rng.choice([1.0, 1.0, 0.5, 0.1, 0.02, 0.0])
    return efx.FilterBank(basis, index=index.masked_fill(torch.rand(outputs, channels) >= density, 255), scale=scale)


def check(case: KernelCase) -> float:
    """Each result has at most twice torch's own error on the same input, or that of a few roundings.

    Returns the largest ratio of the two errors.
    """
    largest = 0.0
    expected, torch_result = case.by_torch(torch.float64), case.by_torch(case.x.dtype)
    for isa in available_isas():
        set_cpu_isa(isa)
        assert case.plan.code == PLANS[case.family]
        for name, got, want, theirs in zip(("y", "dx"), case.run(), expected, torch_result, strict=True):
            assert got.shape == want.shape, f"{name} of {case}"
            assert got.dtype == case.x.dtype, f"{name} of {case}"
            if want.norm() <= 1e-10 * (case.x.double().norm() + case.grad.double().norm()):
                want = torch.zeros_like(want)  # the middle tap of an odd DCT function: 1e-17 in float64, zero in ours
            error, torch_error = relative_error(got, want), relative_error(theirs, want)
            if not math.isfinite(torch_error):  # torch 2.14's bfloat16 convolution gives NaN now and then, with AMX
                torch_error = 0.0
            allowed = 2 * max(torch_error, FEW_ROUNDINGS[got.dtype])
            assert error <= allowed, f"{isa}, {name} of {case}: {error:.1e}, torch {torch_error:.1e}"
            largest = max(largest, error / max(torch_error, 2**-26))
    return largest


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_equals_float64(family: str) -> None:
    for seed in range(250):
        check(tile_case(family, seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_wide_rows_equal_float64(family: str) -> None:
    for seed in range(40):
        check(tile_case(family, seed, wide_sizes))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_wide_rows_equal_float64_on_400_geometries(family: str) -> None:
    for seed in range(40, 400):
        check(tile_case(family, seed, wide_sizes))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_equals_float64_on_3400_geometries(family: str, chunk: int) -> None:
    ratios = [check(tile_case(family, seed)) for seed in range(chunk, 3400, 4)]
    assert sum(r <= 2 for r in ratios) >= 0.92 * len(ratios)


def test_kernels_are_what_ran() -> None:
    """That a kernel hands a call to the dense plan would hide its errors above: most cases must not be bit-equal."""
    for family in FAMILIES:
        different = {("y", 1): 0, ("y", 2): 0, ("dx", 1): 0, ("dx", 2): 0}
        for seed in range(300 if family == "depthwise" else 120):
            case = tile_case(family, seed)
            for name, got, dense in zip(("y", "dx"), case.run(), case.run_dense(), strict=True):
                different[name, case.stride] += not torch.equal(got, dense)
        if family == "depthwise":
            assert different.pop(("dx", 2)) == 0  # torch's
        assert min(different.values()) >= 5, (family, different)


def big_case(
    family: str, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format | None = None
) -> KernelCase:
    torch.manual_seed(0)
    groups = 24 if family == "depthwise" else 1
    bank = random_bank(random.Random(1), family, 24, 24 // groups, 3)
    x = torch.randn(3, 24, 30, 34).to(dtype)
    if memory_format is not None:
        x = x.contiguous(memory_format=memory_format)
    return KernelCase(x, x.clone(), bank, torch.randn(24).to(dtype), 1, (1, 1), groups, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_result_does_not_depend_on_threads(family: str) -> None:
    case, threads, results = big_case(family), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(case.run())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_four_threads_call_at_once(family: str) -> None:
    case = big_case(family)
    expected = case.run()
    with ThreadPoolExecutor(4) as pool:
        for y, dx in pool.map(lambda _: case.run(), range(40)):
            assert torch.equal(y, expected[0])
            assert torch.equal(dx, expected[1])


class _InWorker(torch.utils.data.Dataset):
    """Convolves in a DataLoader's worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        return big_case("index").run()[0]


def test_in_a_forked_data_loader_worker() -> None:
    expected = big_case("index").run()[0]  # the parent's threads exist already
    loader = torch.utils.data.DataLoader(
        _InWorker(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for y in loader:
        assert torch.equal(y, expected)


def test_layout_stays_and_views_are_read_in_place() -> None:
    for family in FAMILIES:
        y, dx = big_case(family, memory_format=torch.channels_last).run()
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert dx.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout_", [torch.contiguous_format, torch.channels_last])
def test_an_activation_may_overwrite_the_result(layout_: torch.memory_format) -> None:
    """Kernels once returned views in channels_last, which autograd does not let anyone write to."""
    conv, x = efx.FixedConv2d(3, 8, 3, seed=0), torch.randn(2, 3, 9, 9).contiguous(memory_format=layout_)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(F.relu_(conv(x)).sum(), x)
    assert torch.equal(dx, torch.autograd.grad(F.relu(conv(x)).sum(), x)[0])


def test_float64_and_other_geometry_run_the_dense_plan() -> None:
    bank = efx.make_bank("dct2", 8, 8, 3, seed=0)
    assert make_plan(bank, torch.float64).name == "dense"
    assert make_plan(bank, torch.float32, dilation=(2, 2), stride=(2, 2), force="index").name == "dense"
    assert make_plan(bank, torch.bfloat16, dilation=(2, 2), force="index").name == "dense"
    assert make_plan(bank, torch.float32, stride=(1, 2)).name == "dense"
    plan = make_plan(bank, torch.float32)
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)  # of a float32 layer
    args = (bank.basis, bank.steering, plan.packed, None, [1, 1], [1, 1], [1, 1], 1, 1.0, plan.code)
    assert relative_error(ops.fixed_conv2d(x, *args), F.conv2d(x, bank.weight(torch.float64), padding=1)) < 1e-14


def test_gradient_needs_what_was_packed_for_its_stride() -> None:
    bank = efx.make_bank("dct2", 8, 8, 3, seed=0)
    plan = make_plan(bank, torch.float32, stride=(2, 2), force="index")
    filters = (bank.basis, bank.steering, plan.packed)
    with pytest.raises(RuntimeError, match="packed must be made for stride 1, got one for 2"):
        ops.fixed_conv2d_input_grad(
            torch.randn(1, 8, 9, 9), *filters, [9, 9], [1, 1], [1, 1], [1, 1], 1, 1.0, plan.code
        )


def test_forced_plan_must_fit_the_bank() -> None:
    index, coeff = efx.make_bank("dct2", 8, 8, 3, seed=0), efx.make_bank("ghaar", 8, 8, 3, seed=0)
    x = torch.randn(1, 8, 9, 9)
    with pytest.raises(ValueError, match="plan 'low_rank' needs a bank of coefficients, got an index bank of shape"):
        efx.fixed_conv2d(x, index, plan="low_rank")
    with pytest.raises(ValueError, match="plan 'index' needs an index bank, got coefficients of shape"):
        efx.fixed_conv2d(x, coeff, plan="index")
    with pytest.raises(ValueError, match="one input channel a group"):
        efx.FixedConv2d(8, 8, 3, plan="depthwise")
    with pytest.raises(ValueError, match='plan must be "auto" or one of dense, index, low_rank, depthwise'):
        efx.FixedConv2d(8, 8, 3, plan="fast")
    with pytest.raises(ValueError, match="isa must be one of plain, avx2, avx512, got 'sse'"):
        set_cpu_isa("sse")
    for plan in ("auto", "dense", "index"):
        conv = efx.FixedConv2d(8, 8, 3, init="dct2", seed=0, plan=plan)
        assert relative_error(conv(x), F.conv2d(x, conv.weight, conv.bias)) < 1e-6


@pytest.mark.parametrize("amx", [False, True])
def test_plan_follows_the_crossovers(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    if set_cpu_isa(None) != "avx512":
        pytest.skip("the expectations below are those of AVX-512")
    dct = efx.dct_basis((3, 3))
    monkeypatch.setattr(cpu, "cpu_has_amx", lambda: amx)
    for bank, dtype, stride, groups, name in [
        (efx.make_bank("dct2", 64, 64, 3, seed=0), torch.float32, 1, 1, "index"),
        (efx.make_bank("dct2", 8, 8, 3, seed=0), torch.float32, 2, 1, "index"),
        (efx.make_bank("dct2", 8, 8, 3, seed=0), torch.bfloat16, 2, 1, "index" if amx else "dense"),
        (efx.make_bank("dct2", 64, 64, 7, seed=0), torch.bfloat16, 1, 1, "dense" if amx else "index"),
        (efx.make_bank("dct2", 64, 64, 7, seed=0, density=0.1), torch.bfloat16, 1, 1, "index"),
        (efx.make_bank("dct2", 64, 64, 3, seed=0, groups=64), torch.float32, 1, 64, "depthwise"),
        (efx.FilterBank(dct[:4], coeff=torch.randn(64, 64, 4)), torch.float32, 1, 1, "low_rank"),
        (efx.FilterBank(dct[:4], coeff=torch.randn(64, 64, 4)), torch.bfloat16, 1, 1, "dense"),
        (efx.make_bank("psine", 64, 64, 3, seed=0), torch.float32, 1, 1, "dense"),
    ]:
        assert make_plan(bank, dtype, stride=(stride, stride), groups=groups).name == name


@pytest.mark.parametrize(
    ("dtype", "rows", "layout_", "dense"),
    [
        (torch.float32, 64, torch.channels_last, True),
        (torch.float32, 63, torch.channels_last, False),  # below 2^20 elements
        (torch.float32, 64, torch.contiguous_format, False),
        (torch.bfloat16, 8, torch.contiguous_format, False),
        (torch.bfloat16, 8, torch.channels_last, True),
    ],
)
def test_auto_hands_to_torch_what_it_does_faster(
    dtype: torch.dtype, rows: int, layout_: torch.memory_format, dense: bool
) -> None:
    if dtype == torch.bfloat16 and not cpu_has_amx():
        pytest.skip("no AMX")
    bank = efx.make_bank("dct2", 16, 16, 3, seed=0)
    x = torch.randn(1, 16, rows, 1024).to(dtype).contiguous(memory_format=layout_)
    y = {plan: efx.fixed_conv2d(x, bank, padding=1, plan=plan) for plan in ("auto", "dense", "index")}
    assert not torch.equal(y["index"], y["dense"])
    assert torch.equal(y["auto"], y["dense" if dense else "index"])


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_more_than_2_to_31_elements(stride: int) -> None:
    rows, columns, repeated = 2**15, 2**16 + 64, 64
    memory = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    if memory is None or int(memory[1]) * 1024 < 5.5 * rows * columns:
        pytest.skip("needs 12 GB of free memory")
    x = torch.randn(repeated, columns).bfloat16().repeat(rows // repeated, 1)[None, None]
    bank = efx.make_bank("dct2", 1, 1, 3, seed=0)
    y = efx.fixed_conv2d(x, bank, stride=stride, padding=1, plan="index")
    weight = bank.weight(x.dtype).double()
    for first in (0, 2**31 // columns - 3, rows - 8):  # the second contains element 2^31
        first -= first % 2
        near = F.conv2d(x[:, :, first : first + 8].double(), weight, stride=stride, padding=1)
        got = y[:, :, first // stride : (first + 8) // stride]
        assert relative_error(got[:, :, 1:-1], near[:, :, 1:-1]) < 2**-8


def test_no_response_tensor_in_memory() -> None:
    """The responses of this layer, 9 for each input, would take 230 MB; scratch is about 1 MB a thread."""
    script = """
import resource, torch, explainfix_ext as efx
torch.set_num_threads(2)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
conv = efx.FixedConv2d(32, 32, 3, padding=1, bias=False, init="dct2", seed=0, plan="index")
conv(torch.randn(1, 32, 8, 8))
x = torch.randn(4, 32, 224, 224)
before = peak()
y = conv(x)
grown = peak() - before
assert conv.kernel_plan.name == "index"
assert grown < y.nbytes + 8e6, f"{grown / 1e6:.0f} MB for an output of {y.nbytes / 1e6:.0f} MB"
"""
    subprocess.run([sys.executable, "-c", script], check=True)
