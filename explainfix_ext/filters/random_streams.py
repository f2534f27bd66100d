"""This module draws random numbers that are the same on every platform and with every version; recipes rely on it.

Raw bits come from numpy's Philox (a counter-based generator whose stream numpy promises to keep), keyed by a seed and a
purpose; uniforms, normals and permutations are made from the bits by the fixed code below, never by a library whose
algorithm may change. tests/filters/test_random_streams.py pins them.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

SEED_BITS = 63  # so that a seed fits torch's and JSON's signed 64-bit integers


def derive_seed(seed: int, name: str) -> int:
    """Derives the seed of a named part, such as a layer, from the seed of the whole; the result is in [0, 2**63)."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - SEED_BITS)


class Stream:
    """A Stream yields random numbers without end, fixed by `seed` and `purpose`.

    Streams of other seeds or purposes are independent.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        key = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(key, "little"))

    def bits(self, *shape: int) -> NDArray[np.uint64]:
        """Draws an array of `shape` of raw random bits, 64 in each number."""
        return self._bits.random_raw(int(np.prod(shape))).reshape(shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Draws an array of `shape` from the uniform distribution on [low, high), with 53 random bits each."""
        fraction = (self.bits(*shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * fraction

    def normal(self, *shape: int) -> NDArray[np.float64]:
        """Draws an array of `shape` from the standard normal distribution, by Box and Muller."""
        n = int(np.prod(shape))
        radius, angle = self.uniform(2, (n + 1) // 2)
        radius, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * angle
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n].reshape(shape)

    def permutation(self, rows: int, n: int) -> NDArray[np.int64]:
        """Draws `rows` permutations of range(n), an array (rows, n); each sorts n random numbers."""
        return np.argsort(self.bits(rows, n), axis=1, kind="stable")

    def integers(self, low: int, high: int, *shape: int) -> NDArray[np.int64]:
        """Draws an array of `shape` of integers in [low, high)."""
        return low + np.floor(self.uniform(*shape) * (high - low)).astype(np.int64)
