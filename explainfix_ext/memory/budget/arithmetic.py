"""Reads a budget in bytes, and finds the largest batch within it."""

from __future__ import annotations

import re
from collections.abc import Callable

from explainfix_ext._support.text import shown

_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}


def parse_bytes(budget: int | str) -> int:
    """Reads a number of bytes, such as 2**30, "24GiB" or "1.5 GB".

    Raises:
        ValueError: it is none, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(budget))
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if isinstance(budget, bool) or found is None or found[2].lower() not in units or not float(found[1]):
        raise ValueError(f"budget must be bytes, or a size such as 24GiB, 80GB or 512MiB, got {shown(budget)}")
    return int(float(found[1]) * units[found[2].lower()])


def largest_batch(total: Callable[[int], int], budget: int, known: dict[int, int]) -> int:
    """Returns the largest batch whose total is within the budget.

    At each moment of a step the bytes are linear in the batch, so that the peak over all moments is convex: between a
    batch that fits and one that does not, the chord is above it, and where the chord meets the budget a batch fits.
    Beyond known batches the line through two of them is below it, and may lead to a batch that does not fit.

    Args:
        known: totals of a batch of 0, which has no activations, and of another.
    """
    if known[0] > budget:
        return 0
    low, high = sorted(known)
    at, above = known[low], known[high]
    while above <= budget:  # take the line through both, and a bit more
        step = max(1, (above - at) // (high - low))
        low, at, high = high, above, high + (budget - above) // step + 1
        above = total(high)
    while high - low > 1:
        guess = low + (budget - at) * (high - low) // (above - at)
        guess = min(max(guess, low + 1), high - 1)
        size = total(guess)
        if size <= budget:
            low, at = guess, size
        else:
            high, above = guess, size
    return low
