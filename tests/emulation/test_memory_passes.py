"""The CUDA kernels of passes and max pooling, run on the CPU against their references: what no thread writes is NaN."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from emulation.host_compiler import compile_for_host
from support.compare import SPECIAL
from torch import Tensor

from explainfix_ext.ops import passes as ours
from explainfix_ext.ops.passes import ACTIVATIONS

CASES = [(seed, blocks) for seed in range(12) for blocks in (1, 3)]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return compile_for_host("passes", tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="module")
def pooling(tmp_path_factory):
    return compile_for_host("max_pool", tmp_path_factory.mktemp("emulation"))


def reference(name: str, *args):
    return ours.REFERENCES[name](*args)


class Run:
    """One random tensor, in either layout and dtype, and the host kernels on it."""

    def __init__(self, host, seed: int, blocks: int) -> None:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        self.dtype = rng.choice([torch.float32, torch.float64])
        self.channels_last, self.blocks, self.parts = rng.random() < 0.5, blocks, rng.choice([1, 5, 40])
        self.shape = (rng.randint(1, 4), rng.choice([2, 3, 17]), rng.randint(2, 6), rng.choice([3, 13]))
        self.act, self.slope = rng.randrange(len(ACTIVATIONS)), 0.1
        self.kernel = host.run_float if self.dtype == torch.float32 else host.run_double
        self.tolerance = 1e-5 if self.dtype == torch.float32 else 1e-12

    def random(self) -> Tensor:
        return self.laid_out(torch.randn(self.shape, dtype=self.dtype) * 2 + 0.5)

    def laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def channel(self) -> Tensor:
        return torch.randn(self.shape[1], dtype=self.dtype)

    def memory(self, x: Tensor) -> np.ndarray:
        """Flat, in the order of the memory."""
        return (x.permute(0, 2, 3, 1) if self.channels_last else x).contiguous().flatten().numpy().copy()

    def tensor(self, flat: np.ndarray) -> Tensor:
        n, c, h, w = self.shape
        x = torch.from_numpy(flat)
        return x.view(n, h, w, c).permute(0, 3, 1, 2) if self.channels_last else x.view(n, c, h, w)

    def __call__(self, name: str, x=None, y=None, factors=(), codes=None, first=None, second=None):
        def flat(t, size):
            return (
                np.full(size, np.nan, self.memory(torch.zeros(self.shape, dtype=self.dtype)).dtype) if t is None else t
            )

        n, c, h, w = self.shape
        size = n * c * h * w
        x, y = (flat(None if t is None else self.memory(t), size) for t in (x, y))
        a, b, d = (flat(f.numpy(), c) for f in (*factors, *[torch.zeros(c, dtype=self.dtype)] * 3)[:3])
        codes = np.zeros(size, np.uint8) if codes is None else codes
        first, second = flat(first, n * c), flat(second, n * c)
        shape = (n, c, h * w)
        options = (self.act, self.slope, codes, first, second, self.blocks, self.parts)
        self.kernel(name, shape, self.channels_last, x, y, a, b, d, *options)
        return y, codes, first, second

    def same(self, got: Tensor, want: Tensor) -> None:
        assert torch.isfinite(got).all()
        assert (got - want).norm() <= self.tolerance * max(want.norm(), 1)


@pytest.mark.parametrize(("seed", "blocks"), CASES)
def test_passes_equal_their_references(host, seed: int, blocks: int) -> None:
    run = Run(host, seed, blocks)
    x, grad, alpha, beta, c = run.random(), run.random(), run.channel(), run.channel(), run.channel()
    channels = run.shape[1]

    y = run("affine_act", x, factors=(alpha, beta))[0]
    run.same(run.tensor(y), reference("affine_act", x, alpha, beta, run.act, run.slope))
    if run.act != ACTIVATIONS["hardswish"]:  # it has steps, which roundings may miss
        want = grad.clone()
        reference("affine_act_backward_", want, x, alpha, beta, run.act, run.slope)
        run.same(run.tensor(run("affine_act_backward", x, grad, (alpha, beta))[0]), want)
    want = grad.clone()
    reference("channel_combine_", want, x, alpha, beta, c)
    run.same(run.tensor(run("channel_combine", x, grad, (alpha, beta, c))[0]), want)

    first, second = run("batch_stats", x)[2:]
    mean, var = reference("batch_stats", x)
    run.same(torch.from_numpy(first[:channels]), mean)
    run.same(torch.from_numpy(second[:channels]), var)
    first, second = run("batch_norm_sums", x, grad, (mean, beta.abs()))[2:]
    wants = reference("batch_norm_sums", grad, x, mean, beta.abs())
    for got, want in zip((first, second), wants, strict=True):
        run.same(torch.from_numpy(got[:channels]), want)


@pytest.mark.parametrize(("seed", "blocks"), CASES)
def test_masks_and_int8_equal_their_references(host, seed: int, blocks: int) -> None:
    run = Run(host, seed, blocks)
    x, grad = run.random(), run.random()
    run.act = random.Random(seed).choice([1, 2, 3])
    want = reference("act_mask", x, run.act)
    codes = run("act_mask", x)[1]
    assert np.array_equal(codes[: len(want)], want.numpy())
    scaled = grad.clone(memory_format=torch.preserve_format)
    reference("mask_backward_", scaled, want, run.act, run.slope)
    run.same(run.tensor(run("mask_backward", y=grad, codes=codes)[0]), scaled)

    _, codes, low, step = run("quantize", x)
    want_codes, want_low, want_step = reference("quantize", x)
    run.same(torch.from_numpy(low), want_low.flatten())
    run.same(torch.from_numpy(step), want_step.flatten())
    assert np.abs(codes.astype(int) - run.memory(want_codes).astype(int)).max() <= 1  # ties
    back = run.tensor(run("dequantize", codes=codes, first=low, second=step)[0])
    assert ((back - x).abs() <= want_step[:, :, None, None] * 0.51).all()


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("value", [1.0, torch.nan, torch.inf])
def test_what_is_not_finite_is_as_in_torch(host, act: str, value: float) -> None:
    for seed in range(2):
        run = Run(host, seed, 1)
        run.shape, run.act = (1, 2, 4, 4), ACTIVATIONS[act]
        x = run.laid_out(torch.tensor([*SPECIAL, 1] * 2, dtype=run.dtype).view(run.shape))
        grad, one, zero = torch.full_like(x, value), torch.ones(2, dtype=run.dtype), torch.zeros(2, dtype=run.dtype)
        want = grad.clone()
        reference("affine_act_backward_", want, x, one, zero, run.act, run.slope)
        got = run.tensor(run("affine_act_backward", x, grad, (one, zero))[0])
        torch.testing.assert_close(got, want, equal_nan=True)
        if act in ours.MASKED:
            codes = run("act_mask", x)[1]
            got = run.tensor(run("mask_backward", y=grad, codes=codes)[0])
            torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_statistics_and_int8_of_what_is_not_finite(host, value: float) -> None:
    run = Run(host, 0, 3)
    x = run.random()
    x[0, 1, 1, 2] = value
    var = torch.from_numpy(run("batch_stats", x)[3])[: run.shape[1]]
    assert var.isnan().sum() == var[1].isnan() == 1
    _, codes, low, step = run("quantize", x)
    back = run.tensor(run("dequantize", codes=codes, first=low, second=step)[0])
    assert not back[0, 1, 1, 2].isfinite()


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("blocks", [1, 5])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (2, 3, 1), (5, 2, 2)])
def test_max_pool_equals_torch(
    pooling, kernel: int, stride: int, padding: int, blocks: int, channels_last: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 11, 8)
    x[0, 0, 2, 2] = torch.nan
    x.requires_grad_()
    want = torch.nn.functional.max_pool2d(x, kernel, stride, padding)
    grad = torch.randn_like(want)
    (want_dx,) = torch.autograd.grad(want, x, grad)

    def memory(t: Tensor) -> np.ndarray:
        return (t.permute(0, 2, 3, 1) if channels_last else t).detach().contiguous().numpy().copy()

    sizes = (*x.shape, *want.shape[2:], kernel, stride, padding)
    like = memory(want)
    y, places, dx = np.full_like(like, np.nan), np.zeros_like(like, np.uint8), np.full_like(memory(x), np.nan)
    pooling.max_pool(sizes, channels_last, memory(x), y, places, blocks)
    assert np.array_equal(y, like, equal_nan=True)
    pooling.max_pool_grad(sizes, channels_last, memory(grad), places, dx, blocks)
    np.testing.assert_allclose(dx, memory(want_dx), rtol=1e-5, atol=1e-6)
    pooling.max_pool_grad(sizes, channels_last, memory(grad), np.full_like(places, kernel**2), dx, blocks)
    assert not dx.any()  # a place outside of its window is that of no input
