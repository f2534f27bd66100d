"""low_rank_kernel, run on the CPU against float64: what no thread writes stays NaN."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from emulation.host_compiler import barriers, bits, compile_for_host, goes_wrong
from support.compare import relative_error
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.ops.plans.bank_facts import product_factors
from explainfix_ext.ops.plans.pack_cuda_low_rank import pack_low_rank

PRODUCTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
# z and the coefficients are each rounded once to the product's type, and the result to x's.
TOLERANCE = {"bf16": 6e-3, "fp16": 8e-4, "tf32": 8e-4, "fp32": 2e-6}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return compile_for_host("low_rank", tmp_path_factory.mktemp("emulation"))


@dataclass
class Case:
    """A call of the op: x (N, C, H, W), coeff (O, C/groups, L), basis (L, kh, kw) float64."""

    product: str
    x: Tensor
    coeff: Tensor
    basis: Tensor
    bias: Tensor | None
    stride: int
    padding: tuple[int, int]
    groups: int
    scale: float
    relu: bool
    outputs: int
    products: bool

    @property
    def weight(self) -> Tensor:
        return self.scale * torch.einsum("oil,lhw->oihw", self.coeff.double(), self.basis)

    def forward(self, host) -> tuple[Tensor, Tensor]:
        """(got, expected)"""
        want = F.conv2d(self.x.double(), self.weight, None, self.stride, self.padding, 1, self.groups)
        if self.bias is not None:
            want = want + self.bias.double()[:, None, None]
        want = want.relu() if self.relu else want
        packed = pack_low_rank(self.coeff, None, self.x.dtype, self.groups)
        return self.call(host, self.x, want.shape, packed, self.padding, False), want

    def gradient(self, host) -> tuple[Tensor, Tensor]:
        """Of the input, with stride 1, where x has the role of the output's gradient."""
        swapped = self.coeff.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)  # (I, O/groups, L)
        want = F.conv_transpose2d(self.x.double(), self.as_transposed(), None, 1, self.padding, 0, self.groups)
        packed = pack_low_rank(swapped, None, self.x.dtype, self.groups)
        packed = packed[len(packed) - self.elements() :]
        rest = tuple(k - 1 - p for k, p in zip(self.basis.shape[1:], self.padding, strict=True))
        return self.call(host, self.x, want.shape, packed, rest, True), want

    def as_transposed(self) -> Tensor:
        """(C, O/groups, kh, kw): the weight of the convolution whose gradient it is."""
        return self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def elements(self) -> int:
        one = pack_low_rank(self.coeff[:, :, :1], None, self.x.dtype, self.groups)
        step = 32 // self.x.dtype.itemsize
        per_group, channels = len(self.coeff) // self.groups, self.coeff.shape[1]
        forward = self.groups * -(-channels // step) * step * -(-per_group // 64) * 64
        assert forward <= len(one)
        return forward * self.coeff.shape[2]

    def call(self, host, x: Tensor, shape, packed: Tensor, padding, flipped: bool) -> Tensor:
        (n, c, h, w), (kh, kw) = x.shape, self.basis.shape[1:]
        o, stride = shape[1], 1 if flipped else self.stride
        sizes = (n, self.groups, c, o, h, w, *shape[2:], kh, kw, stride, stride, *padding)
        y = torch.full((n, *shape[2:], o), torch.nan, dtype=x.dtype)
        bias = torch.empty(0, dtype=x.dtype) if self.bias is None or flipped else self.bias
        arrays = [bits(t) for t in (x.permute(0, 2, 3, 1).contiguous(), packed, bias, y)]
        square = kh == kw and kh in (3, 5, 7) and self.product != "fp32"
        products = product_factors(self.basis) if self.products and square else None
        factors = self.basis.flatten(1) if products is None else products
        rest = (self.scale, flipped, self.relu and not flipped, self.outputs)
        host.low_rank(
            self.product, sizes, arrays[0], arrays[1], factors.contiguous().numpy(), arrays[2], arrays[3], *rest
        )
        return y.permute(0, 3, 1, 2)


def random_case(seed: int, product: str, kernel=(3, 3), stride: int = 1, rank: int = 4, products: bool = True) -> Case:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = PRODUCTS[product]
    unit = 16 // dtype.itemsize
    groups = rng.choice([1, 1, 1, 2])
    channels, outputs = unit * rng.randint(1, 5), unit * rng.choice([1, 2, 8, 9, 12, 17])
    size = [k + rng.randint(0, 9) for k in kernel]
    x = torch.randn(rng.randint(1, 3), groups * channels, *size, dtype=torch.float64).to(dtype)
    basis = torch.randn(rank, *kernel, dtype=torch.float64)
    if products:
        basis = basis[:, :1] * basis[:, :, :1]
    coeff = torch.randn(groups * outputs, channels, rank)
    bias = torch.randn(groups * outputs).to(dtype) if rng.random() < 0.5 else None
    padding = (rng.randint(0, kernel[0] - 1), rng.randint(0, kernel[1] - 1))
    relu, wide = rng.random() < 0.3, rng.choice([64, 128])
    return Case(product, x, coeff, basis, bias, stride, padding, groups, 0.37, relu, wide, products)


def check(got: Tensor, want: Tensor, product: str) -> None:
    assert torch.isfinite(got).all()
    error = relative_error(got, want)
    assert error <= TOLERANCE[product], f"{error:.1e}"


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("kernel", "rank"), [((3, 3), 3), ((5, 5), 9), ((7, 7), 2), ((1, 3), 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_low_rank_kernel_of_any_functions(host, product: str, kernel, rank: int, stride: int) -> None:
    host.seed(rank)
    case = random_case(10 * rank + stride, product, kernel, stride, rank, products=False)
    check(*case.forward(host), product)
    if stride == 1:
        check(*case.gradient(host), product)


@pytest.mark.parametrize("product", ["bf16", "fp16", "tf32"])
@pytest.mark.parametrize("rank", [1, 4, 7])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (7, 7)], ids=str)
def test_low_rank_kernel_of_products(host, product: str, kernel, rank: int) -> None:
    for stride in (1, 2):
        host.seed(rank)
        case = random_case(10 * rank + stride, product, kernel, stride, rank)
        check(*case.forward(host), product)
    check(*random_case(rank, product, kernel, 1, rank).gradient(host), product)


@pytest.mark.parametrize("product", PRODUCTS)
def test_low_rank_kernel_keeps_a_nan(host, product: str) -> None:
    """0x7fffffff is what a GPU's arithmetic makes, and what rounding to TF32 by an addition would turn into a zero."""
    case = random_case(3, product)
    case.relu = False
    ones = torch.tensor(0x7FFF if case.x.itemsize == 2 else 0x7FFFFFFF)
    case.x[0, 0, 1, 2] = ones.to(torch.int16 if case.x.itemsize == 2 else torch.int32).view(case.x.dtype)
    got, want = case.forward(host)
    assert want.isnan().any()
    assert torch.equal(got.isnan(), want.isnan())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_low_rank_kernel_on_random_geometry(host, seed: int) -> None:
    rng = random.Random(seed)
    product, rank = rng.choice(list(PRODUCTS)), rng.randint(1, 9)
    kernel, stride = rng.choice([(3, 3), (5, 5), (7, 7), (2, 4), (7, 1)]), rng.choice([1, 2])
    host.seed(seed)
    case = random_case(seed, product, kernel, stride, rank, rng.random() < 0.7)
    check(*case.forward(host), product)
    check(*case.gradient(host), product)


def test_factors_are_those_of_the_functions() -> None:
    for size in ((3, 3), (5, 3), (1, 7)):
        basis = efx.dct_basis(size)
        factors = product_factors(basis)
        assert factors is not None
        again = factors[:, : size[0], None] * factors[:, None, size[0] :]
        assert (again - basis).abs().max() < 1e-6
    assert product_factors(torch.randn(4, 3, 3, dtype=torch.float64)) is None
    zero = product_factors(torch.zeros(1, 3, 3, dtype=torch.float64))
    assert zero is not None
    assert not zero.any()


@pytest.mark.parametrize("line", barriers("low_rank/low_rank.cuh"))
def test_low_rank_kernel_needs_each_barrier(host, line: int) -> None:
    """The emulation would not see a missing barrier in the kernel if this passed with it left out."""

    def run(skipped: int) -> None:
        host.skip_barrier(skipped)
        for seed in range(8):
            host.seed(seed)
            check(*random_case(seed, "bf16").forward(host), "bf16")

    assert not goes_wrong(lambda: run(0))
    assert goes_wrong(lambda: run(line))


def test_tiles_waste_little(host) -> None:
    assert host.tile((64, 56, 56), (3, 3), 1) == (8, 8, 2, 32 * 7 * 7)  # two images fit better than 8 x 16
    assert host.tile((64, 64, 64), (3, 3), 1)[:3] == (8, 16, 1)
    assert host.tile((64, 14, 14), (3, 3), 1) == (8, 16, 1, 64 * 2)
    assert host.tile((64, 7, 7), (3, 3), 1)[2:] == (2, 32)
    for kernel, stride in (((7, 7), 2), ((3, 3), 1), ((1, 7), 2)):
        for size in ((1, 1, 1), (3, 5, 200), (2, 300, 1)):
            rows, columns, images, tiles = host.tile(size, kernel, stride)
            assert rows * columns * images == 128
            assert tiles == -(-size[0] // images) * -(-size[1] // rows) * -(-size[2] // columns)
