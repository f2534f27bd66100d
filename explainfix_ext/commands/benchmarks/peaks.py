"""Measures what this CPU can do at best; `conv` reports which share of it a kernel reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from explainfix_ext._support.timing import using_threads

from .conv import prepacked

_CONVOLUTIONS = ((8, 512, 7), (4, 256, 14))  # batch, channels, size of 3x3 convolutions that oneDNN runs near the peak
_MATMUL = 1024


@dataclass(frozen=True)
class Peaks:
    """Holds the measured limits of one thread, in float32.

    Attributes:
        fma_flops: floating-point operations per second, an FMA being two of them.
    """

    fma_flops: float

    @property
    def operations(self) -> float:
        """Returns FMAs per second; there can be as many load-adds.

        A core starts two FMAs a cycle: peak = cores * 2 FMA * 2 flops * lanes * clock. It also starts two loads a
        cycle, each of which an addition can take as its operand: 2 * lanes * clock. Both are half of the flop rate.
        """
        return self.fma_flops / 2


def measure_peaks(rounds: int = 15) -> Peaks:
    """Measures the fastest of several rounds of dense work on one thread; takes a second or two.

    A matrix product alone will not do: MKL leaves AVX-512 out on AMD's CPUs, where oneDNN's convolutions are then more
    than twice as fast. So the fastest of a product and two convolutions with prepacked weights is taken. oneDNN reaches
    90 to 95 % of what the clock would allow, so the fractions of the peak are too high by that.
    """
    with torch.no_grad(), using_threads(1):
        a = torch.randn(_MATMUL, _MATMUL)
        found = [_flops(lambda: a @ a, 2 * _MATMUL**3, rounds)]
        for batch, channels, size in _CONVOLUTIONS:
            x, weight = torch.randn(batch, channels, size, size), torch.randn(channels, channels, 3, 3)
            x = x.contiguous(memory_format=torch.channels_last)
            call = prepacked(x, weight, stride=1, padding=1)
            if call is not None:
                found.append(_flops(call, 2 * batch * channels**2 * 9 * size**2, rounds))
    return Peaks(max(found))


def _flops(call: Callable[[], object], count: int, rounds: int) -> float:
    """Returns operations per second of the fastest call."""
    best = float("inf")
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return count / best
