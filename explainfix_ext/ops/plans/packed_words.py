"""The packers of the CPU's index plan share this: an int32 array that grows part after part, and how channels are cut
into blocks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


class PackedWords:
    """An int32 array that grows part after part."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[np.ndarray] = []

    def reserve(self, count: int) -> tuple[int, np.ndarray]:
        """Appends zeros to fill in later; returns where they begin, and the zeros themselves."""
        part = np.zeros(count, np.int32)
        begin = self.size
        self._parts.append(part)
        self.size += count
        return begin, part

    def add(self, words: np.ndarray | list) -> int:
        """Appends `words`, flattened; returns where they begin."""
        flat = np.ravel(words)
        begin, part = self.reserve(len(flat))
        part[:] = flat
        return begin

    def array(self) -> np.ndarray:
        """Returns all words.

        Raises:
            ValueError: there are too many for offsets of 32 bits.
        """
        if self.size >= 2**31:
            raise ValueError(f"a bank must fit 2^31 - 1 packed words, and this one takes {self.size}: use plan='dense'")
        return np.concatenate(self._parts)


def split_rows(rows: np.ndarray, target: int) -> list[tuple[int, int]]:
    """Cuts channels into ranges [first, last) of about equal numbers of rows.

    Args:
        rows: of each channel.
        target: rows of a range, at most; a channel that alone has more is a range of its own.
    """
    total = int(rows.sum())
    count = min(max(1, -(-total // target)), max(1, len(rows)))
    bounds = np.searchsorted(np.cumsum(rows), np.arange(1, count) * (total / count), side="left") + 1
    edges = sorted({0, *np.minimum(bounds, len(rows)).tolist(), len(rows)})
    return list(pairwise(edges)) or [(0, len(rows))]
