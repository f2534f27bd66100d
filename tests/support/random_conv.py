"""Random convolutions for differential tests, which compare with F.conv2d in float64.

`random_conv` makes any convolution that a user may call; `kernel_case` one that the kernels of a given plan can do, in
sizes that the test draws, since each kernel has its own limits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.ops import fixed_conv2d as ops
from explainfix_ext.ops.binaries import cpu_isa
from explainfix_ext.ops.plans.plan import DENSE, ConvPlan, make_plan

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

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def ours(self) -> Tensor:
        return efx.fixed_conv2d(self.x, self.bank, self.bias, **self.geometry)

    def expected(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same in float64, from the weight as rounded to the case's dtype: what a plain convolution would hold."""
        return F.conv2d(x, self.bank.weight(self.dtype, x.device).double(), bias, **self.geometry)

    def __str__(self) -> str:
        init = self.bank.recipe.init if self.bank.recipe else "?"
        return f"{list(self.x.shape)} {self.x.stride()} {self.dtype} {init} {list(self.bank.shape)} {self.geometry}"


def random_conv(seed: int, device: str = "cpu", dtype: torch.dtype | None = None) -> Case:
    """A small convolution of random everything; the same for the same seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = dtype or rng.choice(DTYPES)
    groups = rng.choice([1, 1, 1, 2, 3])
    depthwise = rng.random() < 0.15
    channels = groups * rng.randint(1, 9)
    out_channels = groups * rng.randint(1, 9)
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
    density = rng.choice([1.0, 1.0, 0.5, 0.1])
    bank = efx.make_bank(rng.choice(INITS), out_channels, channels, kernel, groups=groups, seed=seed, density=density)
    x = layout(rng, torch.randn(batch, channels, *size, dtype=torch.float64).to(dtype))
    if rng.random() < 0.1 and batch:
        x = x[0]
    bias = torch.randn(out_channels, dtype=torch.float64).to(dtype) if rng.random() < 0.5 else None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Case(x.to(device), bank.to(device), None if bias is None else bias.to(device), geometry)


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
            plan = make_plan(self.bank, self.x.dtype, stride=steps, groups=self.groups, force=self.family)
            self.plans[cpu_isa()] = plan.pack(self.bank, self.x.dtype, self.groups) if plan.late else plan
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
