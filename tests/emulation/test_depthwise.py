"""depthwise_kernel in all its instances, run on the CPU against float64: what no thread writes stays NaN."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulation.host_compiler import compile_for_host
from support.compare import TOLERANCE, relative_error
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.ops.plans.pack_cuda_depthwise import pack_depthwise

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = ("nchw", "nhwc")
FILTERS = [(3, "general"), (5, "general"), (5, "separable"), (7, "general"), (7, "separable")]
DIRECTIONS = [("forward", 1), ("forward", 2), ("gradient", 1), ("gradient", 2)]
INSTANCES = [
    pytest.param(
        dtype, layout, kernel, kind, direction, stride, id=f"{dtype}-{layout}-{kernel}-{kind}-{direction}{stride}"
    )
    for dtype, layout, (kernel, kind), (direction, stride) in product(DTYPES, LAYOUTS, FILTERS, DIRECTIONS)
]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return compile_for_host("depthwise", tmp_path_factory.mktemp("emulation"))


@dataclass
class Call:
    """A depthwise convolution of x (N, C, H, W), or its input gradient, and how the kernel is to run it."""

    layout: str
    x: Tensor
    filters: Tensor  # packed: (2, K, C) or (K, K, C)
    bias: Tensor | None
    stride: int
    padding: tuple[int, int]
    gradient: bool
    out_size: tuple[int, int]
    segment_steps: int = 0  # 0: as many as the launcher would take

    @property
    def weight(self) -> Tensor:
        """(C, 1, K, K) float64."""
        separable = len(self.filters) == 2
        taps = torch.einsum("ic,jc->ijc", *self.filters.double()) if separable else self.filters.double()
        return taps.permute(2, 0, 1)[:, None]

    def expected(self) -> Tensor:
        x, w, geometry = self.x.double(), self.weight, (self.stride, self.padding, 1, self.x.shape[1])
        if self.gradient:
            return torch.nn.grad.conv2d_input((*x.shape[:2], *self.out_size), w, x, *geometry)
        return F.conv2d(x, w, None if self.bias is None else self.bias.double(), *geometry)

    def run(self, host, memory: np.ndarray | None = None) -> Tensor:
        """What the kernel writes to `memory`, or to an array of its own."""
        (n, c, h, w), (out_h, out_w) = self.x.shape, self.out_size
        kernel, channels_last = self.filters.shape[1], self.layout != "nchw"
        flipped = self.gradient and self.stride == 1
        padding = [kernel - 1 - p if flipped else p for p in self.padding]
        sizes = (n, c, h, w, out_h, out_w, kernel, kernel, self.stride, self.stride, *padding)
        y = bits(torch.full((n * c * out_h * out_w,), torch.nan, dtype=self.x.dtype)) if memory is None else memory
        host.depthwise(
            next(name for name, dtype in DTYPES.items() if dtype == self.x.dtype),
            sizes,
            channels_last,
            self.gradient,
            len(self.filters) == 2,
            self.segment_steps,
            bits(self.x.permute(0, 2, 3, 1) if channels_last else self.x),
            self.filters.numpy(),
            np.zeros(0) if self.bias is None else bits(self.bias),
            y,
        )
        got = torch.from_numpy(y).view(self.x.dtype)
        return got.view(n, out_h, out_w, c).permute(0, 3, 1, 2) if channels_last else got.view(n, c, out_h, out_w)

    def check(self, host) -> None:
        got, want = self.run(host), self.expected()
        assert got.isfinite().all(), self
        assert relative_error(got, want) <= TOLERANCE[self.x.dtype], self


def bits(t: Tensor) -> np.ndarray:
    """Flat, in the order of the memory."""
    flat = t.contiguous().flatten()
    return (flat if flat.dtype == torch.float32 else flat.view(torch.int16)).numpy().copy()


def random_call(rng: random.Random, dtype, layout, kernel, kind, direction, stride, *, longest: int = 9) -> Call:
    gradient, pairs = direction == "gradient", layout == "nhwc"
    padding = (rng.randrange(kernel), rng.randrange(kernel))
    size = [max(kernel - 2 * p, rng.choice([1, 2, 3, 5, longest])) for p in padding]
    smaller = [(s + 2 * p - kernel) // stride + 1 for s, p in zip(size, padding, strict=True)]
    size, out_size = (smaller, size) if gradient else (size, smaller)
    channels = rng.choice([2, 8, 34] if pairs else [1, 3, 8, 17]) if longest < 10 else rng.choice([8, 64, 130])
    bias = torch.randn(channels, dtype=DTYPES[dtype]) if not gradient and rng.random() < 0.5 else None
    return Call(
        layout=layout,
        x=torch.randn(rng.choice([0, 1, 1, 2, 3]), channels, *size, dtype=DTYPES[dtype]),
        filters=torch.randn(2 if kind == "separable" else kernel, kernel, channels) / kernel,
        bias=bias,
        stride=stride,
        padding=padding,
        gradient=gradient,
        out_size=tuple(out_size),
        segment_steps=rng.choice([0, 1, 3, 100]),
    )


@pytest.mark.parametrize(("dtype", "layout", "kernel", "kind", "direction", "stride"), INSTANCES)
def test_depthwise_kernel_equals_float64(host, dtype, layout, kernel, kind, direction, stride) -> None:
    rng = random.Random(f"{dtype} {layout} {kernel} {kind} {direction} {stride}")
    for _ in range(2):
        random_call(rng, dtype, layout, kernel, kind, direction, stride).check(host)


@pytest.mark.slow
@pytest.mark.parametrize("longest", [7, 16])
@pytest.mark.parametrize("seed", range(10))
def test_depthwise_kernels_equal_float64_on_many_shapes(host, seed: int, longest: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for instance in INSTANCES:
        random_call(rng, *instance.values, longest=longest).check(host)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("direction", "stride"), DIRECTIONS)
def test_depthwise_kernel_writes_nothing_else(host, layout: str, direction: str, stride: int) -> None:
    rng = random.Random(f"{layout} {direction} {stride}")
    call = random_call(rng, "fp32", layout, 5, "separable", direction, stride)
    size, guard = call.expected().numel(), 64
    memory = np.full(size + 2 * guard, 7, np.float32)
    call.run(host, memory[guard : guard + size])
    assert (memory[:guard] == 7).all()
    assert (memory[guard + size :] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "kind"), FILTERS)
def test_depthwise_kernel_gives_the_bias_where_the_filter_is_zero(host, dtype, layout, kernel: int, kind: str) -> None:
    call = random_call(random.Random(0), dtype, layout, kernel, kind, "forward", 1)
    call = replace(call, filters=torch.zeros_like(call.filters), x=torch.randn(2, *call.x.shape[1:]).to(call.x.dtype))
    assert torch.equal(replace(call, bias=None).run(host), torch.zeros_like(call.run(host)))
    call.bias = torch.randn(call.x.shape[1]).to(call.x.dtype)
    got = call.run(host)
    assert torch.equal(got, call.bias[:, None, None].expand_as(got))


@pytest.mark.parametrize("init", ["dct2", "psine"])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_packed_depthwise_bank_gives_its_convolution(host, init: str, kernel: int) -> None:
    bank = efx.make_bank(init, 18, 1, (kernel, kernel), seed=0, density=0.7 if init == "dct2" else 1.0, gain="kaiming")
    weight = bank.weight(torch.float64)
    filters = pack_depthwise(weight)
    assert len(filters) == (2 if init == "dct2" and kernel >= 5 else kernel)
    call = Call("nhwc", torch.randn(2, 18, 9, 6), filters, None, 1, (1, 2), False, (12 - kernel, 11 - kernel))
    want = F.conv2d(call.x.double(), weight, None, 1, (1, 2), 1, 18)
    assert relative_error(call.run(host), want) <= TOLERANCE[torch.float32]


def grid(
    host, shape: tuple, kernel: int, stride: int = 1, channels_last: bool = True, input_grad: bool = False, **change
):
    """The launch of x's convolution with padding K / 2."""
    sizes = {"n": shape[0], "c": shape[1], "h": shape[2], "w": shape[3]}
    sizes |= {"out_h": (shape[2] - 1) // stride + 1, "out_w": (shape[3] - 1) // stride + 1, "kh": kernel, "kw": kernel}
    sizes |= {"sh": stride, "sw": stride, "ph": kernel // 2, "pw": kernel // 2}
    return host.grid(tuple((sizes | change).values()), channels_last, input_grad, True)


@pytest.mark.parametrize(
    "shape", [(64, 144, 56, 56), (64, 240, 28, 28), (128, 672, 14, 14), (1, 32, 112, 112)], ids=str
)
def test_depthwise_grid_fills_the_card_and_repeats_little(host, shape: tuple) -> None:
    n, c, h, w = shape
    g = grid(host, shape, 5)
    assert g["lanes"] % 8 == 0
    assert g["chunks"] * g["lanes"] <= 1.2 * c / 2  # idle lanes
    assert (g["segments"] - 1) * g["segment_steps"] < h <= g["segments"] * g["segment_steps"]
    assert g["segment_steps"] >= 8  # of which each reads the inputs of 4 more
    assert g["threads"] == n * g["chunks"] * g["lanes"] * -(-w // 4) * g["segments"]
    assert g["threads"] >= 132 * 380 or n == 1


def test_depthwise_grid_takes_no_other_convolution(host) -> None:
    shape = (2, 8, 16, 16)
    assert grid(host, shape, 5)
    assert grid(host, shape, 7, 2, input_grad=True)
    assert grid(host, (0, 8, 16, 16), 5)["threads"] == 0
    assert not grid(host, shape, 4)
    assert not grid(host, shape, 9)
    assert not grid(host, shape, 3, 3)
    for change in ({"kw": 3}, {"sw": 2}, {"ph": 5}, {"pw": -1}):
        assert not grid(host, shape, 5, **change)
    # Threads, or offsets, of more than 32 bits.
    assert not grid(host, (1 << 31, 64, 8, 8), 5)
    assert not grid(host, (1, 1 << 27, 8, 8), 5)
    assert not grid(host, (1, 1, 1 << 27, 8), 5)
