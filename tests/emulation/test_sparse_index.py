"""sparse_index_kernel, run on the CPU against float64: what no thread writes stays NaN."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulation.host_compiler import BUILD, barriers, bits, compile_for_host, goes_wrong
from support.compare import relative_error
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.ops.plans.pack_cuda_index import ROWS, pack_sparse_index

# The result is rounded once, and in 16 bits z is; torch rounds the result and the filters.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
DENSITIES = [1.0, 0.2, 0.05, 0.01, 0.0]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return compile_for_host("sparse_index", tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="module")
def all_variants(tmp_path_factory):
    return compile_for_host("sparse_index_all", tmp_path_factory.mktemp("emulation"))


@dataclass
class Case:
    """A call of the op with an index bank of DCT functions, in any order."""

    x: Tensor
    index: Tensor
    functions: list[int]
    kernel: int
    stride: int
    padding: tuple[int, int]
    groups: int
    bias: Tensor | None
    channels_last: bool
    processors: int
    scale: float = 0.37
    change: Callable[[np.ndarray], np.ndarray] = np.asarray  # of the words

    @property
    def weight(self) -> Tensor:
        basis = torch.cat(
            [efx.dct_basis((self.kernel, self.kernel))[self.functions], torch.zeros(1, *[self.kernel] * 2)]
        )
        return self.scale * basis[self.index.long().clamp(max=len(self.functions))]

    @property
    def packed(self) -> Tensor:
        return pack_sparse_index(self.index, self.functions, self.kernel, self.groups)

    def expected(self) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return F.conv2d(self.x.double(), self.weight, bias, self.stride, self.padding, 1, self.groups)

    def run(self, host, shape: torch.Size) -> Tensor | None:
        return self.call(host, self.x, shape, self.padding, self.stride, self.bias, False)

    def forward(self, host) -> tuple[Tensor | None, Tensor]:
        """(got, expected)"""
        want = self.expected()
        return self.run(host, want.shape), want

    def gradient(self, host) -> tuple[Tensor | None, Tensor]:
        """Of the input, with stride 1, for a random gradient of the output."""
        size = [s + 2 * p - self.kernel + 1 for s, p in zip(self.x.shape[2:], self.padding, strict=True)]
        grad = torch.randn(len(self.x), len(self.index), *size).to(self.x.dtype)
        want = F.conv_transpose2d(grad.double(), self.weight, None, 1, self.padding, 0, self.groups)
        assert want.shape == self.x.shape
        rest = (self.kernel - 1 - self.padding[0], self.kernel - 1 - self.padding[1])
        return self.call(host, grad, want.shape, rest, 1, None, True), want

    def call(self, host, x: Tensor, shape, padding, stride: int, bias: Tensor | None, gradient: bool) -> Tensor | None:
        n, c, h, w = x.shape
        sizes = (n, self.groups, c, shape[1], h, w, *shape[2:], self.kernel, stride, *padding)
        size = (n, *shape[2:], shape[1]) if self.channels_last else tuple(shape)
        y = torch.full(size, torch.nan, dtype=x.dtype)
        x = (x.permute(0, 2, 3, 1) if self.channels_last else x).contiguous()
        bias = torch.empty(0, dtype=x.dtype) if bias is None else bias
        arrays = (bits(x), self.change(self.packed.numpy()), bits(bias), bits(y))
        dtype = str(x.dtype).removeprefix("torch.")
        done = host.sparse_index(dtype, sizes, self.channels_last, *arrays, self.scale, gradient, self.processors)
        return (y.permute(0, 3, 1, 2) if self.channels_last else y) if done else None


def random_case(
    seed: int,
    dtype: torch.dtype,
    kernel: int = 3,
    stride: int = 1,
    density: float = 0.2,
    channels_last: bool | None = None,
) -> Case:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    groups, channels_last = rng.choice([1, 1, 1, 2, 3]), rng.random() < 0.5 if channels_last is None else channels_last
    channels, outputs = rng.randint(1, 40), rng.choice([1, 7, 16, 24, 33, 70])
    if channels_last:  # of which the kernel reads four at once
        channels, outputs = channels + -channels % 4, outputs + -outputs % 4
    padding = (rng.randint(0, kernel - 1), rng.randint(0, kernel - 1))
    size = [max(1, kernel - 2 * p) + rng.choice([0, 1, 3, 6, rng.randint(0, 18)]) for p in padding]
    x = torch.randn(rng.choice([1, 2, 3]), groups * channels, *size).to(dtype)
    functions = rng.sample(range(kernel**2), rng.choice([2, kernel**2, kernel**2]))
    index = torch.randint(len(functions), (groups * outputs, channels), dtype=torch.uint8)
    index[torch.rand(index.shape) >= density] = 255
    bias = torch.randn(groups * outputs).to(dtype) if rng.random() < 0.5 else None
    return Case(
        x, index, functions, kernel, stride, padding, groups, bias, channels_last, processors=rng.choice([1, 100])
    )


def check(got: Tensor | None, want: Tensor) -> None:
    assert got is not None
    assert torch.isfinite(got).all()
    error = relative_error(got, want.where(want.abs() > 1e-12, 0.0))  # where all is zero, float64 has 1e-17
    assert error <= TOLERANCE[got.dtype], f"{error:.1e}"


def check_both(host, case: Case) -> None:
    check(*case.forward(host))
    if case.stride == 1:
        check(*case.gradient(host))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_sparse_index_kernel_equals_float64(host, kernel: int, stride: int) -> None:
    for seed, density in enumerate(DENSITIES * 2):
        host.seed(seed)
        channels_last = None if kernel == 3 else stride == 1  # as they are compiled
        check_both(host, random_case(10 * kernel + seed, torch.bfloat16, kernel, stride, density, channels_last))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_types_equal_float64(host, dtype: torch.dtype) -> None:
    for seed, density in enumerate(DENSITIES * 2):
        host.seed(seed)
        check_both(host, random_case(seed, dtype, density=density, channels_last=dtype == torch.float32))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_every_variant_on_random_geometry(all_variants, kernel: int, stride: int, dtype: torch.dtype) -> None:
    for seed in range(30):
        all_variants.seed(seed)
        check_both(all_variants, random_case(seed, dtype, kernel, stride, DENSITIES[seed % len(DENSITIES)]))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_many_channels_and_outputs(host, channels_last: bool) -> None:
    """Several blocks of channels, blocks of 512 threads, several blocks of outputs."""
    index = torch.randint(9, (532, 152), dtype=torch.uint8)
    index[torch.rand(index.shape) >= 0.3] = 255
    x = torch.randn(1, 152, 6, 5).bfloat16()
    for processors in (1, 100):
        bias = torch.randn(532).bfloat16()
        check_both(host, Case(x, index, list(range(9)), 3, 1, (1, 1), 1, bias, channels_last, processors))


def malformed(words: np.ndarray, head: int, rng: random.Random) -> np.ndarray:
    """Other words than Python's: some are changed, all of them, or there are fewer."""
    words = words[: len(words) if rng.random() < 0.8 else rng.randint(head, len(words))].copy()
    anything = np.frombuffer(rng.randbytes(4 * len(words)), np.int32).copy()
    kind = rng.random()
    if kind < 0.1:
        return anything
    if kind < 0.2:
        words[head:] = anything[head:]  # the blocks are right, and the lists are not
    for _ in range(rng.choice([1, 1, 3, 30])):
        place = rng.randrange(rng.choice([head, len(words)]))
        values = [0, 1, 255, 639, 640, 1 << 24, (1 << 31) - 1, -1, -1 << 31, len(words) - rng.randint(-2, 40)]
        values += [int(anything[place])] + 8 * [int(words[place]) + rng.randint(-5, 5)]
        words[place] = np.array(rng.choice(values)).astype(np.int32)
    return words


@pytest.mark.skipif(BUILD == "tsan", reason="wrong words let threads write to the same row of z")
@pytest.mark.parametrize(
    ("dtype", "kernel", "stride", "channels_last"),
    [(torch.bfloat16, 3, 1, True), (torch.bfloat16, 5, 2, False), (torch.float32, 3, 1, True)],
    ids=str,
)
def test_other_words_reach_nothing_outside(host, dtype, kernel: int, stride: int, channels_last: bool) -> None:
    """Nor do they keep the kernel busy for ever. What is read outside only AddressSanitizer sees."""

    def run() -> None:
        for seed in range(25):
            rng = random.Random(seed)
            case = random_case(seed % 5, dtype, kernel, stride, 0.3, channels_last)
            head = 2 * (case.groups + 1) + 4 * 2 * case.groups
            case.change = lambda words: malformed(words, head, rng)  # noqa: B023 (called in this turn)
            with suppress(ValueError):  # too few
                case.forward(host)
            if stride == 1:
                with suppress(ValueError):
                    case.gradient(host)

    assert not goes_wrong(run)


def test_too_few_words_are_refused(host) -> None:
    case = random_case(0, torch.bfloat16)
    case.change = lambda words: words[:100]
    with pytest.raises(ValueError, match="packed has too few words"):
        case.forward(host)


def test_planes_of_one_pixel(host) -> None:
    for channels_last in (False, True):
        case = random_case(0, torch.bfloat16)
        case.x, case.padding, case.channels_last = torch.randn(70, 4, 1, 1).bfloat16(), (1, 1), channels_last
        case.index, case.groups, case.bias = torch.randint(9, (12, 4), dtype=torch.uint8), 1, None
        case.functions = list(range(9))
        check_both(host, case)


def test_large_values_do_not_overflow_fp16(host) -> None:
    case = random_case(1, torch.float16, channels_last=False)
    case.x = torch.full_like(case.x, 60000.0)
    case.scale, case.bias = 1e-3, None
    check(*case.forward(host))


def test_error_is_that_of_torch(host) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        case = random_case(2, dtype, density=0.3, channels_last=False)
        case.bias = None
        got, want = case.forward(host)
        theirs = F.conv2d(case.x, case.weight.to(dtype), None, 1, case.padding, 1, case.groups)
        assert relative_error(got, want) <= 1.2 * relative_error(theirs, want)


@pytest.mark.parametrize("line", barriers("sparse_index/sparse_index.cuh"))
def test_sparse_index_kernel_needs_each_barrier(host, line: int) -> None:
    """The emulation would not see a missing barrier in the kernel if this passed with it left out."""

    def run(seed: int) -> None:
        host.seed(seed)
        check(*random_case(seed, torch.bfloat16).forward(host))

    assert not any(goes_wrong(lambda seed=seed: run(seed)) for seed in range(8))
    host.skip_barrier(line)
    try:
        assert any(goes_wrong(lambda seed=seed: run(seed)) for seed in range(8))
    finally:
        host.skip_barrier(0)


def test_some_channels_of_channels_last_are_left_to_others(host) -> None:
    case = random_case(0, torch.bfloat16)
    case.x, case.index = torch.randn(1, 3, 8, 8).bfloat16(), case.index[:8, :3] * 0
    case.groups, case.channels_last, case.bias = 1, True, None
    assert case.forward(host)[0] is None


def test_tiles_waste_little(host) -> None:
    assert host.z_rows == ROWS
    h100, a100 = (132, 227 << 10, 228 << 10), (108, 163 << 10, 164 << 10)
    full = {56: 64 * 49, 28: 16 * 49, 14: 4 * 49, 7: 64 * 7 * 8 // 64}
    for size, tiles in full.items():
        for channels_last in (False, True):
            width, found, threads, shared = host.grid((64, 256, 256, size, size), channels_last, h100)
            assert found == tiles, (size, width)
            assert threads == 256
            assert 2 * (shared + 1024) <= h100[2]
            # There is no room for two blocks.
            assert host.grid((64, 256, 256, size, size), channels_last, a100)[2] == 512
    assert host.grid((64, 512, 512, 14, 14), True, h100)[2] == 512
    assert host.grid((64, 512, 512, 7, 7), True, h100)[2] == 256  # too few tiles
    assert host.grid((64, 256, 256, 14, 14), True, (1, 99 << 10, 100 << 10)) is None
    assert host.grid((64, 254, 256, 14, 14), True, h100) is None
    assert host.grid((1, 1 << 20, 8, 1 << 10, 1 << 10), False, h100) is None
