"""sparse_index_kernel, run on the CPU against float64: what no thread writes stays NaN."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import relative_error
from host_compiler import barriers, compile_for_host
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.packing_cuda import ROWS, pack_sparse_index

# The result is rounded once, and in 16 bits z is; torch rounds the result and the filters.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
DENSITIES = [1.0, 0.2, 0.05, 0.01, 0.0]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return compile_for_host("sparse_index_kernels", tmp_path_factory.mktemp("emulation"))


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
    rows: bool
    processors: int
    scale: float = 0.37

    @property
    def weight(self) -> Tensor:
        basis = torch.cat([efx.dct_basis((self.kernel, self.kernel))[self.functions], torch.zeros(1, *[self.kernel] * 2)])
        return self.scale * basis[self.index.long().clamp(max=len(self.functions))]

    @property
    def packed(self) -> Tensor:
        return pack_sparse_index(self.index, self.functions, self.kernel, self.groups)

    def forward(self, host) -> tuple[Tensor | None, Tensor]:
        """(got, expected)"""
        bias = None if self.bias is None else self.bias.double()
        want = F.conv2d(self.x.double(), self.weight, bias, self.stride, self.padding, 1, self.groups)
        return self.call(host, self.x, want.shape, self.padding, self.stride, self.bias, False), want

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
        size = (n, *shape[2:], shape[1]) if self.rows else tuple(shape)
        y = torch.full(size, torch.nan, dtype=x.dtype)
        x = (x.permute(0, 2, 3, 1) if self.rows else x).contiguous()
        bias = torch.empty(0, dtype=x.dtype) if bias is None else bias
        arrays = (bits(x), self.packed.numpy(), bits(bias), bits(y))
        dtype = str(x.dtype).removeprefix("torch.")
        done = host.sparse_index(dtype, sizes, self.rows, *arrays, self.scale, gradient, self.processors)
        return (y.permute(0, 3, 1, 2) if self.rows else y) if done else None


def bits(t: Tensor) -> np.ndarray:
    """The tensor's memory, for a numpy that knows no bfloat16."""
    return t.numpy() if t.dtype == torch.float32 else t.view(torch.int16).numpy()


def random_case(seed: int, dtype: torch.dtype, kernel: int = 3, stride: int = 1, density: float = 0.2) -> Case:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    groups, rows = rng.choice([1, 1, 1, 2, 3]), rng.random() < 0.5
    channels, outputs = rng.randint(1, 40), rng.choice([1, 7, 16, 24, 33, 70])
    if rows:  # of which the kernel reads two at a time
        channels, outputs = channels + channels % 2, outputs + outputs % 2
    padding = (rng.randint(0, kernel - 1), rng.randint(0, kernel - 1))
    size = [max(1, kernel - 2 * p) + rng.choice([0, 1, 3, 6, rng.randint(0, 18)]) for p in padding]
    x = torch.randn(rng.choice([1, 2, 3]), groups * channels, *size).to(dtype)
    functions = rng.sample(range(kernel**2), rng.choice([2, kernel**2, kernel**2]))
    index = torch.randint(len(functions), (groups * outputs, channels), dtype=torch.uint8)
    index[torch.rand(index.shape) >= density] = 255
    bias = torch.randn(groups * outputs).to(dtype) if rng.random() < 0.5 else None
    return Case(x, index, functions, kernel, stride, padding, groups, bias, rows, processors=rng.choice([1, 100]))


def check(got: Tensor | None, want: Tensor) -> None:
    assert got is not None
    assert torch.isfinite(got).all()
    error = relative_error(got, want)
    assert error <= TOLERANCE[got.dtype], f"{error:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_sparse_index_kernel_equals_float64(host, kernel: int, stride: int, dtype: torch.dtype) -> None:
    for seed, density in enumerate(DENSITIES):
        host.seed(seed)
        case = random_case(10 * kernel + seed, dtype, kernel, stride, density)
        check(*case.forward(host))
        if stride == 1:
            check(*case.gradient(host))
