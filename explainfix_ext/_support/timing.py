"""Interleaved timing: what is compared runs turn by turn, so that a change of the machine's clock meets all alike."""

from __future__ import annotations

import contextlib
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Calls = Mapping[str, Callable[[], Any]]
Clock = Callable[[], float]
Setting = TypeVar("Setting")

LEAST_SECONDS = 2e-3  # a turn shorter than this would measure the clock and the interpreter


@dataclass(frozen=True)
class Timing:
    """Attributes:
    seconds: per call, one number for each round, in order.
    repeats: calls that each of them is the mean of.
    """

    seconds: tuple[float, ...]
    repeats: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds."""
        return {"median": self.median, "quartiles": quartiles(self.seconds), "repeats": self.repeats}


def interleaved(
    calls: Calls, rounds: int, least_seconds: float = LEAST_SECONDS, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Time all `calls` in `rounds` rounds. In a round each has one turn, and each round begins with another one.

    Args:
        least_seconds: a turn repeats its call until it takes about this long.
        clock: returns seconds.

    Raises:
        ValueError: rounds is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    repeats = {name: _warm_up(call, least_seconds, clock) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        first = turn % len(names)  # what ran before decides what is in the cache: nobody is always after the same
        for name in names[first:] + names[:first]:
            seconds[name].append(_turn(calls[name], repeats[name], clock) / repeats[name])
    return {name: Timing(tuple(seconds[name]), repeats[name]) for name in names}


def fastest(timings: Mapping[str, Timing], names: tuple[str, ...]) -> str:
    """Which of `names` has the smallest median."""
    return min(names, key=lambda name: timings[name].median)


def ratio(timings: Mapping[str, Timing], over: str, of: str) -> dict[str, Any]:
    """How many times faster `of` is than `over`: the ratio of the medians, and the quartiles of the rounds' ratios."""
    pairs = zip(timings[over].seconds, timings[of].seconds, strict=True)
    median = timings[over].median / timings[of].median
    return {"median": median, "quartiles": quartiles([slow / fast for slow, fast in pairs])}


def quartiles(values: list[float] | tuple[float, ...]) -> list[float]:
    """[25 %, 75 %] of the values, interpolated."""
    if len(values) == 1:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def keep_memory() -> None:
    """Have glibc keep freed memory for this process. Else it may give an output's pages back at each call, whichever
    convolution made it: measured, a depthwise one then took 1.0 to 1.8 ms instead of 0.24, by chance of the heap."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)


@contextlib.contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Torch on that many threads, and afterwards on as many as before. Freed memory stays with the process."""
    keep_memory()
    with temporarily(torch.get_num_threads, torch.set_num_threads, threads):
        yield


@contextlib.contextmanager
def temporarily(get: Callable[[], Setting], set_: Callable[[Setting], None], value: Setting) -> Iterator[None]:
    """Changes a setting of torch, and afterwards puts back what it was before."""
    before = get()
    set_(value)
    try:
        yield
    finally:
        set_(before)


def _warm_up(call: Callable[[], Any], least_seconds: float, clock: Clock) -> int:
    """Calls it twice; the second time, when code and memory are there, tells the repeats of a turn."""
    call()
    once = _turn(call, 1, clock)
    return max(1, math.ceil(least_seconds / max(once, 1e-7)))


def _turn(call: Callable[[], Any], repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return clock() - start
