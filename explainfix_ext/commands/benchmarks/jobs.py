"""Lists the measurements of a benchmark: each case by direction and threads. `commands/bench.py` runs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .cases import Case, LayerCase, ModelCase
from .conv import DIRECTIONS, measure_layer
from .models import measure_model
from .peaks import Peaks

Job = tuple[str, Callable[[], list[dict[str, Any]]]]

QUICK_ROUNDS = 3


def jobs(
    cases: Sequence[Case], threads: Sequence[int], rounds: int, peaks: Peaks, quick: bool = False
) -> Iterator[Job]:
    """Yields the measurements of all cases: (name, function that measures and returns rows of the report).

    Args:
        threads: numbers of threads; each case is measured on each.
        rounds: how often each computation is timed.
        peaks: what this CPU can do at best.
        quick: take small inputs and single calls: shows that it runs, not how fast.
    """
    least = {"least_seconds": 0.0} if quick else {}

    def layer(case: LayerCase, direction: str, count: int) -> Job:
        run = lambda: [measure_layer(case, direction, count, rounds, peaks.operations, **least)]  # noqa: E731
        return f"{case.name}, {direction}, threads: {count}", run

    def model(case: ModelCase, count: int) -> Job:
        return f"{case.name}, threads: {count}", lambda: measure_model(case, count, rounds, **least)

    for case in [case.quick() for case in cases] if quick else cases:
        for count in threads:
            if isinstance(case, ModelCase):
                yield model(case, count)
            else:
                yield from (layer(case, direction, count) for direction in DIRECTIONS)


def parse_threads(text: str | None) -> list[int]:
    """Parses --threads: "1,2" is [1, 2]; None is those of 1 and 2 for which there are cores.

    Raises:
        ValueError: the text holds anything but numbers from 1 to the number of cores.
    """
    cores = os.cpu_count() or 1
    if text is None:
        return [1, 2][:cores]
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and 1 <= int(word) <= cores for word in words):
        raise ValueError(f"threads must be numbers from 1 to {cores}, the cores here, such as 1,{cores}; got {text!r}")
    return list(dict.fromkeys(int(word) for word in words))
