"""Random convolutions for differential tests: one generator for every test that compares with F.conv2d."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import explainfix_ext as efx

INITS = ["dct2", "dct2_fill0", "ghaar4_s1", "ghaar", "psine", "kaiming_uniform", "identity", "ones"]
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
