"""The CUDA kernels of passes and max pooling, run on the CPU against their references: what no thread writes is NaN."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from emulation.host_compiler import barriers, bits, compile_for_host, goes_wrong
from support.compare import SPECIAL
from torch import Tensor

from explainfix_ext.ops import passes as ours
from explainfix_ext.ops.passes import ACTIVATIONS

CASES = [(seed, blocks) for seed in range(16) for blocks in (1, 3)]
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 8e-3}  # and what rounding may change; float16 takes long to compile


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return compile_for_host("passes", tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="module")
def pooling(tmp_path_factory):
    return compile_for_host("max_pool", tmp_path_factory.mktemp("emulation"))


def reference(name: str, *args):
    return ours.REFERENCES[name](*args)


def aligned(flat: np.ndarray, shift: int = 0) -> np.ndarray:
    """A copy that begins `shift` elements after a multiple of 32 bytes."""
    memory = np.zeros(flat.size + 64, flat.dtype)
    begin = -(memory.ctypes.data // flat.itemsize) % (32 // flat.itemsize) + shift
    memory[begin : begin + flat.size] = flat
    return memory[begin : begin + flat.size]


class Run:
    """One random tensor, in either layout and dtype, aligned or not, and the host kernels on it."""

    def __init__(self, host, seed: int, blocks: int) -> None:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.dtype = rng.choice(list(DTYPES))
        self.channels_last, self.blocks, self.each = rng.random() < 0.5, blocks, rng.choice([1, 2, 9])
        height, width = rng.choice([(1, 1), (2, 3), (4, 4), (5, 8), (6, 13), (7, 7)])
        self.shape = (rng.randint(1, 4), rng.choice([2, 8, 17, 24, 64]), height, width)
        self.act, self.slope = rng.randrange(len(ACTIVATIONS)), 0.1
        self.shift = rng.choice([0, 0, 0, 1])
        self.host = host

    def random(self) -> Tensor:
        return self.laid_out((torch.randn(self.shape) * 2 + 0.5).to(self.dtype))

    def laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def factors(self) -> Tensor:
        return torch.randn(4, self.shape[1]) + 0.1

    def memory(self, x: Tensor) -> np.ndarray:
        """Flat, in the order of the memory."""
        flat = (x.permute(0, 2, 3, 1) if self.channels_last else x).contiguous().flatten()
        return aligned(flat.numpy() if flat.dtype == torch.uint8 else bits(flat), self.shift)

    def tensor(self, flat: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        n, c, h, w = self.shape
        x = torch.from_numpy(flat.copy())
        x = x.view(dtype or self.dtype)
        return x.view(n, h, w, c).permute(0, 3, 1, 2) if self.channels_last else x.view(n, c, h, w)

    def __call__(self, name: str, x=None, grad=None, factors=None, sums=None, numbers=None, codes=None, ranges=None):
        """The result y, sums, factors, codes and ranges; NaN where the kernel wrote nothing."""
        n, c, h, w = self.shape
        nothing = torch.full(self.shape, torch.nan, dtype=self.dtype)
        x, grad, y = (self.memory(nothing if t is None else t) for t in (x, grad, None))
        factors, sums, numbers = (
            np.full((rows, c), np.nan, np.float32) if t is None else t.numpy()
            for rows, t in ((4, factors), (2, sums), (4, numbers))
        )
        codes = aligned(np.zeros(n * c * h * w, np.uint8)) if codes is None else codes
        ranges = np.full((2, n, c), np.nan, np.float32) if ranges is None else ranges
        run = getattr(self.host, f"run_{self.dtype}".replace("torch.", ""))
        options = (self.act, self.slope, self.blocks, self.each)
        run(name, (n, c, h * w), self.channels_last, x, grad, y, factors, sums, numbers, ranges, codes, *options)
        return {"y": y, "sums": sums, "factors": factors, "codes": codes, "ranges": ranges}

    def same(self, got: Tensor, want: Tensor, tolerance: float | None = None) -> None:
        assert torch.isfinite(got).all()
        tolerance = tolerance or DTYPES[self.dtype]
        assert (got.double() - want.double()).norm() <= tolerance * max(want.double().norm(), 1)


def wide(*tensors: Tensor) -> list[Tensor]:
    return [t.double() for t in tensors]


@pytest.mark.parametrize(("seed", "blocks"), CASES)
def test_passes_equal_their_references(host, seed: int, blocks: int) -> None:
    run = Run(host, seed, blocks)
    x, grad, factors, sums = run.random(), run.random(), run.factors(), run.factors()[:2]
    dx = torch.empty(run.shape, dtype=torch.float64)

    y = run("affine_act", x, factors=factors)["y"]
    run.same(run.tensor(y), reference("affine_act", *wide(x, factors), run.act, run.slope))
    if run.act != ACTIVATIONS["hardswish"]:  # it has steps, which roundings may miss
        reference("affine_act_backward", dx, *wide(grad, x, factors), run.act, run.slope)
        run.same(run.tensor(run("affine_act_backward", x, grad, factors)["y"]), dx)
    count = x.numel() / x.shape[1]
    reference("batch_norm_backward", dx, *wide(grad, x, factors, sums), count)
    run.same(run.tensor(run("batch_norm_backward", x, grad, factors, sums)["y"]), dx)


@pytest.mark.parametrize(("seed", "blocks"), CASES)
def test_sums_equal_their_references(host, seed: int, blocks: int) -> None:
    run = Run(host, seed, blocks)
    x, grad, numbers = run.random(), run.random(), torch.rand(4, run.shape[1])
    exact = numbers.double()
    want = reference("batch_norm_factors", x.double(), *exact, 0.25, 1e-5)
    got = torch.from_numpy(run("batch_norm_factors", x, numbers=numbers)["factors"])
    run.same(got, want, 1e-5)
    run.same(numbers, exact, 1e-5)  # moved
    again = torch.from_numpy(run("batch_norm_factors", x, numbers=numbers)["factors"])
    assert torch.equal(again, got)
    sums = torch.from_numpy(run("batch_norm_sums", x, grad, got)["sums"])
    run.same(sums, reference("batch_norm_sums", *wide(grad, x, got)), 1e-5)


@pytest.mark.parametrize(("seed", "blocks"), CASES)
def test_masks_and_int8_equal_their_references(host, seed: int, blocks: int) -> None:
    run = Run(host, seed, blocks)
    x, grad = run.random(), run.random()
    run.act = random.Random(seed).choice([1, 2, 3])
    want = reference("act_mask", x, run.act)
    codes = run("act_mask", x)["codes"]
    assert np.array_equal(codes[: len(want)], want.numpy())
    scaled = torch.empty_like(grad)
    reference("mask_backward", scaled, grad, want, run.act, run.slope)
    run.same(run.tensor(run("mask_backward", grad=grad, codes=codes)["y"]), scaled)

    got = run("quantize", x)
    want_codes, want_low, want_step = reference("quantize", x)
    low, step = torch.from_numpy(got["ranges"])
    run.same(low, want_low, 1e-6)
    run.same(step, want_step, 1e-6)
    codes = run.tensor(got["codes"], torch.uint8)
    assert (codes.int() - want_codes.int()).abs().max() <= 1  # ties
    back = run.tensor(run("dequantize", codes=got["codes"], ranges=got["ranges"])["y"])
    allowed = want_step[:, :, None, None] * 0.51 + x.float().abs() * DTYPES[run.dtype]
    assert ((back.float() - x.float()).abs() <= allowed).all()


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("value", [1.0, torch.nan, torch.inf])
def test_what_is_not_finite_is_as_in_torch(host, act: str, value: float) -> None:
    for seed in range(2):
        run = Run(host, seed, 1)
        run.dtype, run.shape, run.act = torch.float32, (1, 2, 4, 4), ACTIVATIONS[act]
        x = run.laid_out(torch.tensor([*SPECIAL, 1] * 2).view(run.shape))
        grad, factors = torch.full_like(x, value), torch.tensor([[0.0], [1], [1], [0]]).repeat(1, 2)
        want = torch.empty_like(grad)
        reference("affine_act_backward", want, grad, x, factors, run.act, run.slope)
        got = run.tensor(run("affine_act_backward", x, grad, factors)["y"])
        torch.testing.assert_close(got, want, equal_nan=True)
        if act in ours.MASKED:
            codes = run("act_mask", x)["codes"]
            got = run.tensor(run("mask_backward", grad=grad, codes=codes)["y"])
            torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_statistics_and_int8_of_what_is_not_finite(host, channels_last: bool, value: float) -> None:
    run = Run(host, 0, 3)
    run.dtype, run.shape, run.channels_last = torch.float32, (2, 17, 4, 5), channels_last
    x = run.random()
    x[0, 1, 1, 2] = value
    invstd = torch.from_numpy(run("batch_norm_factors", x, numbers=torch.rand(4, 17))["factors"])[1]
    assert invstd.isnan().sum() == invstd[1].isnan() == 1
    got = run("quantize", x)
    back = run.tensor(run("dequantize", codes=got["codes"], ranges=got["ranges"])["y"])
    assert not back[0, 1, 1, 2].isfinite()


@pytest.mark.parametrize("kernel", ["sums", "quantize", "walk"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_each_barrier_is_needed(host, kernel: str, channels_last: bool) -> None:
    lines = barriers(f"passes/{kernel}.cuh")
    assert lines
    run = Run(host, 3, 1)
    run.dtype, run.shape, run.channels_last, run.each = torch.float32, (3, 17, 8, 8), channels_last, 9
    x = run.random()

    def check() -> None:
        for seed in range(4):
            host.seed(seed)
            if kernel != "quantize":
                got = torch.from_numpy(run("batch_norm_factors", x, numbers=torch.zeros(4, 17))["factors"])
                run.same(got, reference("batch_norm_factors", x, *torch.zeros(4, 17), 0.25, 1e-5))
            run.same(torch.from_numpy(run("quantize", x)["ranges"])[1], reference("quantize", x)[2])

    check()
    for line in lines:
        host.skip_barrier(line)
        assert goes_wrong(check), line
    host.skip_barrier(0)


def random_pool(seed: int) -> tuple[Tensor, tuple[tuple[int, int], ...], bool, bool]:
    """x, of small integers, so that maxima tie, with a NaN; kernel, stride and padding; ceil_mode, channels_last."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kernel = (rng.randint(1, 5), rng.randint(1, 5))
    stride = (rng.randint(1, 3), rng.randint(1, 3))
    padding = (rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2))
    size = [k + rng.randint(0, 9) for k in kernel]
    x = torch.randint(-3, 4, (2, rng.choice([3, 8, 16, 20]), *size)).to(rng.choice([torch.float32, torch.bfloat16]))
    x[0, 0, size[0] // 2, size[1] // 2] = torch.nan
    return x, (kernel, stride, padding), rng.random() < 0.5, rng.random() < 0.5


@pytest.mark.parametrize("blocks", [1, 5])
@pytest.mark.parametrize("seed", range(30))
def test_max_pool_equals_torch(pooling, seed: int, blocks: int) -> None:
    x, windows, ceil_mode, channels_last = random_pool(seed)
    x.requires_grad_()
    want = torch.nn.functional.max_pool2d(x, *windows, 1, ceil_mode)
    grad = torch.randint(-3, 4, want.shape).to(x.dtype)
    (want_dx,) = torch.autograd.grad(want, x, grad)

    def memory(t: Tensor) -> np.ndarray:
        return aligned(bits((t.permute(0, 2, 3, 1) if channels_last else t).detach().contiguous().flatten()))

    def numbers(flat: np.ndarray) -> np.ndarray:
        return torch.from_numpy(flat.copy()).view(x.dtype).float().numpy()

    n, c, h, w = x.shape
    images, channels = (n, c) if channels_last else (n * c, 1)
    sizes = (images, channels, h, w, *want.shape[2:], *windows[0], *windows[1], *windows[2])
    pool, pool_grad = (getattr(pooling, f"{f}_{x.dtype}".replace("torch.", "")) for f in ("max_pool", "max_pool_grad"))
    y, dx = memory(torch.full_like(want, torch.nan)), memory(torch.full_like(x, torch.nan))
    places = aligned(np.zeros(y.size, np.uint8))
    pool(sizes, memory(x), y, places, blocks)
    assert np.array_equal(numbers(y), numbers(memory(want)), equal_nan=True)
    pool_grad(sizes, memory(grad), places, dx, blocks)
    assert np.array_equal(numbers(dx), numbers(memory(want_dx)))
    pool_grad(sizes, memory(grad), np.full_like(places, 255), dx, blocks)
    assert not dx.any()  # a place outside of its window is that of no input
