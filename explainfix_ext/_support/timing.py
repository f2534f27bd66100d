"""This module times calls in turns, so that a change of the machine's clock affects all of them alike."""

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
    """This class holds what was measured of one call.

    Attributes:
        seconds: per call, one number for each round, in order; each is the mean of `repeats` calls.
        repeats: how often each round called it.
    """

    seconds: tuple[float, ...]
    repeats: int

    @property
    def median(self) -> float:
        """The median of the rounds, in seconds per call."""
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON files keep: median and quartiles in seconds, and the repeats."""
        return {"median": self.median, "quartiles": quartiles(self.seconds), "repeats": self.repeats}


def interleaved(
    calls: Calls, rounds: int, least_seconds: float = LEAST_SECONDS, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Times all `calls` in `rounds` rounds: in a round each has one turn, and each round begins with another one.

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
        first = turn % len(names)  # the call before decides what is in the cache, so the order changes
        for name in names[first:] + names[:first]:
            seconds[name].append(_turn(calls[name], repeats[name], clock) / repeats[name])
    return {name: Timing(tuple(seconds[name]), repeats[name]) for name in names}


def fastest(timings: Mapping[str, Timing], names: tuple[str, ...]) -> str:
    """Returns which of `names` has the smallest median."""
    return min(names, key=lambda name: timings[name].median)


def ratio(timings: Mapping[str, Timing], over: str, of: str) -> dict[str, Any]:
    """Returns how many times faster `of` is than `over`: the medians' ratio, and quartiles of the rounds' ratios."""
    pairs = zip(timings[over].seconds, timings[of].seconds, strict=True)
    median = timings[over].median / timings[of].median
    return {"median": median, "quartiles": quartiles([slow / fast for slow, fast in pairs])}


def quartiles(values: list[float] | tuple[float, ...]) -> list[float]:
    """Returns the interpolated quartiles [25 %, 75 %] of the values."""
    if len(values) == 1:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def keep_memory() -> None:
    """Makes glibc keep freed memory for this process.

    Otherwise it may return an output's pages to the system after each call, depending on the heap's layout. Measured:
    a depthwise convolution then took 1.0 to 1.8 ms instead of 0.24 ms.
    """
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)


@contextlib.contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Runs torch on that many threads for a `with` block. It also calls `keep_memory`, which stays in effect."""
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
    """Calls it twice, and returns how many calls fill a turn, from the time of the second, when caches are warm."""
    call()
    once = _turn(call, 1, clock)
    return max(1, math.ceil(least_seconds / max(once, 1e-7)))


def _turn(call: Callable[[], Any], repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return clock() - start
