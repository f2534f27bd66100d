"""Psine filters: many random polynomials of sines at once (ExplainFix 2023, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .random_streams import Stream

CHUNK = 1 << 14  # filters at a time: about 300,000 terms, 25 MB at 3x3


def psine_filters(n: int, kernel_size: tuple[int, int], stream: Callable[[str], Stream]) -> np.ndarray:
    """(n, kh*kw) filters of unit l2 norm.

    Each filter is `polynomial_sine` of L = int(3 + 2^(6 U)) terms: frequencies U(0, fmax) with fmax ~ U(1, 5), phases
    U(0, 2 pi), powers round(U ((L-1)/2 - 1) + 1), weights 2 u / sum(u) - 1; then rescaled to [-1, 1] and normalised.
    """
    terms = (3 + 2 ** (6 * stream("terms").uniform(n))).astype(int)
    fmax = stream("fmax").uniform(n, low=1, high=5)
    draws = {name: stream(name) for name in ("frequency", "phase", "power", "weight")}
    parts = [slice(a, min(a + CHUNK, n)) for a in range(0, n, CHUNK)]
    return np.concatenate([_chunk(terms[part], fmax[part], kernel_size, draws) for part in parts])


def _chunk(terms: np.ndarray, fmax: np.ndarray, kernel_size: tuple[int, int], draws: dict[str, Stream]) -> np.ndarray:
    """Filters of `terms` terms each. All terms lie in one flat array; `first` says where a filter's begin."""
    total, first = int(terms.sum()), np.concatenate([[0], np.cumsum(terms)[:-1]])
    f = draws["frequency"].uniform(2, total) * np.repeat(fmax, terms)
    t = draws["phase"].uniform(2, total, high=2 * math.pi)
    p = np.rint(draws["power"].uniform(total) * ((np.repeat(terms, terms) - 1) / 2 - 1) + 1)
    u = draws["weight"].uniform(total)
    w = 2 * u / np.repeat(np.add.reduceat(u, first), terms) - 1
    rows, cols = (
        np.sin(np.linspace(0, math.pi, size) * f[axis][:, None] + t[axis][:, None])
        for axis, size in enumerate(kernel_size)
    )
    # (rows cols)^p = rows^p cols^p: powers of kh + kw numbers a term, not of kh * kw.
    rows, cols = rows ** p[:, None] * w[:, None], cols ** p[:, None]
    filters = np.add.reduceat((rows[:, :, None] * cols[:, None, :]).reshape(total, -1), first)
    low, high = filters.min(1, keepdims=True), filters.max(1, keepdims=True)
    filters = 2 * (filters - low) / np.maximum(high - low, 1e-300) - 1
    return filters / np.linalg.norm(filters, axis=1, keepdims=True)
