"""Scales numbers of channels, for presets whose name has a width, such as bottleneck@0.5."""

from __future__ import annotations

from collections.abc import Sequence


def scaled(channels: Sequence[int], width: float) -> list[int]:
    """Scales numbers of channels, to multiples of 4, because bottlenecks and gates have a quarter as many."""
    return [max(4, 4 * round(n * width / 4)) for n in channels]
