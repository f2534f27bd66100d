"""Measures what a GPU can do at best, and computes from that the least time that a layer must take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from explainfix_ext._support.timing import interleaved, temporarily
from explainfix_ext.commands.benchmarks.cases import LayerCase
from explainfix_ext.filters.bank import FilterBank

from .device import LEAST_SECONDS, clock_of

_MATMULS = {"bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}


@dataclass(frozen=True)
class Ceilings:
    """Holds the measured limits of a GPU.

    Attributes:
        copy: bytes read plus bytes written, per second, of a large copy within the device's memory.
        flops: floating-point operations per second (an FMA is two) of a large matrix product of random numbers, by
            precision: "bfloat16", "tf32", "float32" (no tensor cores). "float16" is bfloat16's.
    """

    copy: float
    flops: dict[str, float]

    def rate(self, precision: str, tensor_cores: bool) -> float:
        """Returns the multiply-adds per second that the GPU can do.

        Args:
            precision: a key of `flops`.
            tensor_cores: True if they may run on tensor cores.
        """
        return self.flops[precision if tensor_cores else "float32"] / 2


def precision_of(dtype: torch.dtype, tf32: bool) -> str:
    """Returns a key of `Ceilings.flops`: the dtype's name, but "tf32" for float32 if TF32 is allowed."""
    return "tf32" if tf32 and dtype == torch.float32 else str(dtype).removeprefix("torch.")


def measure_ceilings(device: str = "cuda", nbytes: int = 2**30, matmul: int = 8192, rounds: int = 9) -> Ceilings:
    """Measures the limits of a device, as medians of `rounds` rounds; takes about a second.

    Args:
        nbytes: size of the tensor that is copied.
        matmul: side of the square matrices that are multiplied.
    """
    clock = clock_of(device)
    source = torch.randn(nbytes // 4, device=device)
    target = torch.empty_like(source)
    copied = interleaved({"copy": lambda: target.copy_(source)}, rounds, LEAST_SECONDS, clock)["copy"]
    flops = {}
    for name, dtype in _MATMULS.items():
        a, b = (torch.randn(matmul, matmul, device=device).to(dtype) for _ in range(2))
        with temporarily(
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
            "high" if name == "tf32" else "highest",
        ):
            product = interleaved({"product": partial(torch.matmul, a, b)}, rounds, LEAST_SECONDS, clock)["product"]
        flops[name] = 2 * matmul**3 / product.median
    return Ceilings(2 * nbytes / copied.median, flops | {"float16": flops["bfloat16"]})


def floors(case: LayerCase, bank: FilterBank, ceilings: Ceilings, tf32: bool = False) -> dict[str, float]:
    """Computes the times, in seconds, that no kernel can beat.

    Returns:
        "operations": the operations that the filters need (`LayerCase.operations`), as multiply-adds, on tensor cores
        where they are a matrix product; "bytes": input, output and filters, each moved once, at the copy's bandwidth;
        "dense": the larger of both for an ordinary convolution, which torch runs, with K^2 multiply-adds per filter.
    """
    precision, item = precision_of(case.dtype, tf32), case.dtype.itemsize
    _, count = case.operations(bank)
    filters = bank.shape[0] * bank.shape[1]
    numbers = case.batch * (case.in_channels * case.size**2 + case.out_channels * case.out_size**2)
    held = bank.tensors[1:] if bank.coeff is None else (bank.coeff.to(case.dtype),)
    moved = numbers * item + sum(t.nbytes for t in held)
    taps = filters * case.kernel**2
    dense = taps * case.batch * case.out_size**2 / ceilings.rate(precision, not case.depthwise)
    return {
        "operations": count / ceilings.rate(precision, tensor_cores=case.rank is not None),
        "bytes": moved / ceilings.copy,
        "dense": max(dense, (numbers + taps) * item / ceilings.copy),
    }
