"""Random convolutions for differential tests, which compare with F.conv2d in float64.

`random_conv` makes any convolution that a user may call; `kernel_case` one that the kernels of a given plan can do, in
sizes that the test draws, since each kernel has its own limits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.ops import fixed_conv2d as ops
from explainfix_ext.ops.binaries import cpu_isa
from explainfix_ext.ops.plans.plan import DENSE, ConvPlan, make_plan

from .compare import TOLERANCE, relative_error

FAMILIES = ["index", "low_rank", "depthwise"]  # plans that have kernels of their own
INITS = ["dct2", "sdct4", "dct2_fill0", "ghaar4_s1", "ghaar", "psine", "kaiming_uniform", "identity", "ones"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@dataclass
class Case:
    """One convolution: its input, bank, bias, geometry."""

    x: Tensor
    bank: efx.FilterBank
    bias: Tensor | None
    geometry: dict[str, Any]
    plan: str = "auto"

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def expected(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same in float64, from the weight as rounded to the case's dtype: what a plain convolution would hold.
        Kernels of hadamard banks round no weight."""
        rounded = self.dtype if self.bank.hadamard is None else torch.float64
        return F.conv2d(x, self.bank.weight(rounded, x.device).double(), bias, **self.geometry)

    def check(self) -> None:
        """The result and all gradients have the shapes, and nearly the numbers, of the float64 convolution."""
        x = self.x.detach().requires_grad_()
        bias = None if self.bias is None else self.bias.detach().requires_grad_()
        y = efx.fixed_conv2d(x, self.bank, bias, **self.geometry, plan=self.plan)
        x64 = self.x.double().requires_grad_()
        bias64 = None if self.bias is None else self.bias.double().requires_grad_()
        expected = self.expected(x64, bias64)
        assert y.shape == expected.shape, self
        assert y.dtype == self.dtype, self
        grad = torch.randn_like(y)
        wants = [t for t in (x, bias) if t is not None]
        wants64 = [t for t in (x64, bias64) if t is not None]
        got = [y, *torch.autograd.grad(y, wants, grad)]
        want = [expected, *torch.autograd.grad(expected, wants64, grad.double())]
        for name, a, b in zip(("y", "dx", "dbias"), got, want, strict=False):
            assert a.shape == b.shape, f"{name} of {self}"
            error = relative_error(a, b)
            if name == "dbias":  # a sum that may cancel
                error *= b.norm().item() / (grad.double().abs().sum().item() or 1.0)
            assert error <= TOLERANCE[self.dtype], f"{name} of {self}: {error:.1e}"

    def __str__(self) -> str:
        x, recipe = f"{list(self.x.shape)} {self.x.stride()} {self.dtype}", self.bank.recipe
        bank = f"{recipe.init if recipe else 'places drawn'} {list(self.bank.shape)}"
        return f"{x} {bank} {self.geometry} {self.plan} {cpu_isa()}"


def random_conv(seed: int, device: str = "cpu", dtype: torch.dtype | None = None, hadamard: bool = False) -> Case:
    """A small convolution of random everything; the same for the same seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = dtype or rng.choice(DTYPES)
    groups = rng.choice([1, 1, 1, 2, 3])
    depthwise = rng.random() < 0.15
    most = rng.choice([3, 9, 40]) if hadamard else 9
    channels = groups * rng.randint(1, most)
    out_channels = groups * rng.randint(1, most)
    if depthwise:
        groups, out_channels = channels, channels * rng.randint(1, 2)
    kernel = rng.choice([(3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (5, 1), (2, 2), (4, 3), (1, 7)])
    stride = (rng.randint(1, 3), rng.randint(1, 3)) if rng.random() < 0.5 else (1, 1)
    dilation = (rng.randint(1, 3), rng.randint(1, 2)) if rng.random() < 0.3 else (1, 1)
    padding: Any = (rng.randint(0, kernel[0]), rng.randint(0, kernel[1]))
    if rng.random() < 0.2:
        padding, stride = ("same", (1, 1)) if rng.random() < 0.7 else ("valid", stride)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = [r + rng.randint(0, 9) for r in reach]
    batch = rng.choice([0, 1, 1, 2, 3])
    density = rng.choice([1.0, 1.0, 0.5, 0.125 if hadamard else 0.1])
    init, options = ("hadamard", hadamard_options(rng, kernel)) if hadamard else (rng.choice(INITS), {})
    shape = (out_channels, channels, kernel)
    bank = efx.make_bank(init, *shape, groups=groups, seed=seed, density=density, **options)
    if hadamard and rng.random() < 0.3:
        bank = with_any_places(bank)
    plan = rng.choice(["auto", "hadamard", "dense"]) if hadamard else "auto"
    if hadamard and dtype == torch.bfloat16 and (plan == "dense" or max(stride) > 2 or max(dilation) > 1):
        dtype = torch.float32  # torch 2.14's own bfloat16 convolution gives NaN, or 1e30, for 1 % of such geometries
    x = layout(rng, torch.randn(batch, channels, *size, dtype=torch.float64).to(dtype))
    if rng.random() < 0.1 and batch:
        x = x[0]
    bias = torch.randn(out_channels, dtype=torch.float64).to(dtype) if rng.random() < 0.5 else None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Case(x.to(device), bank.to(device), None if bias is None else bias.to(device), geometry, plan)


def hadamard_options(rng: random.Random, kernel: tuple[int, int]) -> dict[str, int]:
    return {
        "terms": rng.choice([1, 1, min(2, kernel[0] * kernel[1]), 3]),
        "functions": rng.choice([2, rng.randint(1, max(kernel))]),
    }


def with_any_places(bank: efx.FilterBank) -> efx.FilterBank:
    """The bank with outputs and inputs at places in any order, some twice: as pruning and permutation leave them."""
    filters = bank.hadamard
    assert filters is not None
    outputs = torch.randint(filters.order * filters.rows.shape[1], filters.outputs.shape, dtype=torch.int16)
    inputs = torch.randint(filters.order, filters.inputs.shape, dtype=torch.int16)
    return replace(bank, hadamard=replace(filters, outputs=outputs, inputs=inputs), recipe=None)


def layout(rng: random.Random, x: Tensor) -> Tensor:
    """x in one of the memory layouts that a user may pass."""
    kind = rng.choice(["contiguous", "contiguous", "channels_last", "transposed", "sliced", "sliced channels_last"])
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if kind.startswith("sliced"):
        wide = torch.cat([x, x], 1)
        if kind.endswith("last"):
            wide = wide.contiguous(memory_format=torch.channels_last)
        return wide[:, : x.shape[1]]
    return x


@dataclass(frozen=True)
class Sizes:
    """The sizes of a convolution; inputs and outputs are channels of all groups together."""

    inputs: int
    outputs: int
    groups: int
    kernel: int
    stride: int
    padding: tuple[int, int]
    batch: int
    height_width: tuple[int, int]

    @property
    def output_height_width(self) -> list[int]:
        pairs = zip(self.height_width, self.padding, strict=True)
        return [(size + 2 * pad - self.kernel) // self.stride + 1 for size, pad in pairs]


@dataclass
class KernelCase:
    """A convolution that the kernels of a plan, `family`, can do, and a gradient of its output."""

    x: Tensor
    grad: Tensor
    bank: efx.FilterBank
    bias: Tensor | None
    stride: int
    padding: tuple[int, int]
    groups: int
    family: str
    plans: dict[str, ConvPlan] = field(default_factory=dict)

    @property
    def geometry(self) -> tuple:
        return ([self.stride] * 2, list(self.padding), [1, 1], self.groups)

    @property
    def plan(self) -> ConvPlan:
        """Made once for each instruction set of the CPU: a CUDA graph cannot capture the copies that packing makes."""
        if cpu_isa() not in self.plans:
            steps = (self.stride, self.stride)
            self.plans[cpu_isa()] = make_plan(
                self.bank, self.x.dtype, stride=steps, groups=self.groups, force=self.family
            )
        return self.plans[cpu_isa()]

    def run(self, code: int | None = None) -> tuple[Tensor, Tensor]:
        """(y, dx) by the family's kernel, or by the plan with that code."""
        return self._call(self.plan.packed, self.plan.code if code is None else code)

    def run_dense(self) -> tuple[Tensor, Tensor]:
        """The same by the dense plan."""
        return self._call(None, DENSE)

    def _call(self, packed: Tensor | None, code: int) -> tuple[Tensor, Tensor]:
        filters = (self.bank.basis, self.bank.steering, packed)
        rest = (*self.geometry, self.bank.scale, code)
        y = ops.fixed_conv2d(self.x, *filters, self.bias, *rest)
        return y, ops.fixed_conv2d_input_grad(self.grad, *filters, list(self.x.shape[2:]), *rest)

    def by_torch(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same by torch in `dtype`, its weight rounded to that."""
        x, grad, weight = self.x.to(dtype), self.grad.to(dtype), self.bank.weight(dtype, self.x.device)
        bias = None if self.bias is None else self.bias.to(dtype)
        y = F.conv2d(x, weight, bias, self.stride, self.padding, 1, self.groups)
        dx, _, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *self.geometry[:3], False, [0, 0], self.groups, [True, False, False]
        )
        return y, dx

    def __str__(self) -> str:
        x = f"x {list(self.x.shape)} {self.x.stride()} {self.x.dtype}"
        filters = f"{list(self.bank.shape)} rank {self.bank.rank} density {self.bank.density:.2f}"
        return f"{x}, {self.family} {filters}, {self.geometry}, bias {self.bias is not None}"


def kernel_case(
    rng: random.Random,
    family: str,
    sizes: Sizes,
    bank: efx.FilterBank,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    channels_last: float = 0.0,
    bias: float = 0.5,
) -> KernelCase:
    """Random numbers of these sizes, in a layout that a user may pass.

    `channels_last` and `bias` are probabilities. On a GPU the gradient has the layout of the output.
    """
    x = torch.randn(sizes.batch, sizes.inputs, *sizes.height_width, device=device).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if rng.random() < channels_last else layout(rng, x)
    grad = torch.randn(sizes.batch, sizes.outputs, *sizes.output_height_width, device=device).to(dtype)
    grad = layout(rng, grad) if device == "cpu" else grad.contiguous(memory_format=memory_format_of(x))
    b = torch.randn(sizes.outputs, device=device).to(dtype) if rng.random() < bias else None
    return KernelCase(x, grad, bank.to(device), b, sizes.stride, sizes.padding, sizes.groups, family)
