"""Random streams that give the same numbers on every platform and version.

Raw bits come from numpy's Philox (a counter-based generator whose stream numpy promises to keep), keyed by a seed and a
purpose; uniforms, normals and permutations are made from the bits by the fixed code below, never by a library whose
algorithm may change. tests/test_streams.py pins them.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

SEED_BITS = 63  # so that a seed fits torch's and JSON's signed 64-bit integers


def derive_seed(seed: int, name: str) -> int:
    """The seed of a named part, such as a layer, of something that has a seed."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - SEED_BITS)


class Stream:
    """An endless stream of random numbers, fixed by `seed` and `purpose`: other purposes give independent streams."""

    def __init__(self, seed: int, purpose: str) -> None:
        key = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(key, "little"))

    def bits(self, *shape: int) -> NDArray[np.uint64]:
        """Raw random bits, 64 a number, in an array of `shape`."""
        return self._bits.random_raw(int(np.prod(shape))).reshape(shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Uniform on [low, high), in an array of `shape`: the top 53 bits, as a fraction."""
        fraction = (self.bits(*shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * fraction

    def normal(self, *shape: int) -> NDArray[np.float64]:
        """Standard normal, in an array of `shape`, by Box and Muller: two uniforms for two normals."""
        n = int(np.prod(shape))
        radius, angle = self.uniform(2, (n + 1) // 2)
        radius, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * angle
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n].reshape(shape)

    def permutation(self, rows: int, n: int) -> NDArray[np.int64]:
        """(`rows`, n): each row a permutation of range(n), the order of its random bits."""
        return np.argsort(self.bits(rows, n), axis=1, kind="stable")

    def integers(self, low: int, high: int, *shape: int) -> NDArray[np.int64]:
        """Integers of [low, high), in an array of `shape`."""
        return low + np.floor(self.uniform(*shape) * (high - low)).astype(np.int64)
