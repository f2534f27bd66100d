"""Interleaved timing: turns, repeats and ratios are what the clock said, and settings are put back."""

from __future__ import annotations

import pytest
import torch

from explainfix_ext._support import timing


class Clock:
    """Time that passes only where a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *seconds: float):
        """A call that takes these seconds, one after another, and then always the last."""
        left = list(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_ratio_is_that_of_the_medians():
    clock = Clock()
    # The first two calls of each are the warm-up.
    calls = {"slow": clock.call("slow", 9, 9, 4, 6, 8), "fast": clock.call("fast", 9, 9, 2, 2, 1)}
    timings = timing.interleaved(calls, rounds=3, least_seconds=0.0, clock=clock)
    assert timings["slow"].seconds == (4, 6, 8)
    assert timings["fast"].seconds == (2, 2, 1)
    assert timing.ratio(timings, over="slow", of="fast") == {"median": 3, "quartiles": [2.5, 5.5]}
    assert timing.ratio(timings, over="fast", of="slow")["median"] == pytest.approx(1 / 3)
    assert timing.fastest(timings, ("slow", "fast")) == "fast"


def test_short_calls_are_repeated_and_rounds_begin_with_another():
    clock = Clock()
    calls = {"a": clock.call("a", 0.5), "b": clock.call("b", 2.0)}
    timings = timing.interleaved(calls, rounds=2, least_seconds=1.5, clock=clock)
    assert "".join(clock.log) == "aa" + "bb" + "aaab" + "baaa"
    assert timings["a"] == timing.Timing((0.5, 0.5), repeats=3)
    assert timings["b"].as_dict() == {"median": 2.0, "quartiles": [2.0, 2.0], "repeats": 1}


def test_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        timing.interleaved({}, rounds=0)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with timing.using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_single_round_has_quartiles():
    assert timing.quartiles([3.0]) == [3.0, 3.0]
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 4.0]
