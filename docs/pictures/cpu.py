"""Draws how a CPU task computes a tile: the index kernel above, the hadamard kernel below."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LIGHT_BLUE,
    LIGHT_GREEN,
    LIGHT_ORANGE,
    ORANGE,
    SOFT,
    arrow,
    canvas,
    square,
    write,
)

LISTS = ("1  5  8", "2  5", "3  6  9", "4  7  8")  # of a quad of outputs: numbers of rows
VECTORS = 7  # of a sub-tile with AVX-512


def draw() -> Figure:
    figure, axes = canvas(8, 5.3)
    _index(axes, 0.1)
    arrow(axes, (0.2, 2.72), (7.8, 2.72), head=False, width=0.6)
    _hadamard(axes, 2.75)
    return figure


def _planes(axes: Axes, y: float, count: int, words: str) -> None:
    """Draws channels of x, and the tile's pixels in each."""
    for sheet in reversed(range(count)):
        x, top = 0.45 + 0.06 * sheet, y + 0.75 - 0.06 * sheet
        square(axes, x, top, 1.1, 1.0, SOFT, GREY)
        square(axes, x, top + 0.3, 1.1, 0.26, LIGHT_ORANGE, ORANGE)
    write(axes, 1.1, y + 2.1, words, 8, GREY)


def _index(axes: Axes, y: float) -> None:
    write(axes, 0.2, y + 0.2, "index", 10, BLUE, ha="left", family="DejaVu Sans Mono")
    _planes(axes, y, 4, "x: a block of channels,\nthe pixels of a tile")
    arrow(axes, (1.85, y + 1.2), (2.5, y + 1.2))
    write(axes, 2.16, y + 0.9, "filter once\nby each\nfunction", 7.5, GREY)
    for row in range(10):
        for vector in range(VECTORS):
            face = SOFT if row == 0 else LIGHT_BLUE
            square(axes, 2.95 + 0.17 * vector, y + 0.4 + 0.145 * row, 0.17, 0.145, face, GREY, 0.5)
        write(axes, 2.87, y + 0.475 + 0.145 * row, str(row), 6.5, GREY, ha="right")
    write(axes, 3.53, y + 0.22, "z, in the first-level cache", 8, INK)
    write(axes, 3.53, y + 2.13, "row 0: zeros; the others: a channel\nfiltered by a function", 8, GREY)
    arrow(axes, (4.3, y + 1.2), (4.75, y + 1.2))
    write(axes, 5.1, y + 0.42, "rows to add", 8, GREY)
    for output, numbers in enumerate(LISTS):
        write(axes, 4.85, y + 0.78 + 0.28 * output, numbers, 8.5, BLUE, ha="left")
        for vector in range(VECTORS):
            square(axes, 5.6 + 0.17 * vector, y + 0.68 + 0.28 * output, 0.17, 0.2, LIGHT_GREEN, GREEN, 0.6)
        write(axes, 6.87, y + 0.78 + 0.28 * output, f"y{output}", 8.5, INK, ha="left")
        arrow(axes, (7.1, y + 0.78 + 0.28 * output), (7.6, y + 0.78 + 0.28 * output))
    write(axes, 6.2, y + 0.42, "sums, in registers", 8, INK)
    write(axes, 6.2, y + 2.13, "4 outputs x 7 vectors of 16 pixels:\n28 of the 32 registers of AVX-512", 8, GREY)


def _hadamard(axes: Axes, y: float) -> None:
    write(axes, 0.2, y + 0.2, "hadamard", 10, GREEN, ha="left", family="DejaVu Sans Mono")
    _planes(axes, y, 7, "x: all channels,\nthe pixels of a tile")
    arrow(axes, (2.05, y + 1.2), (2.6, y + 1.2))
    write(axes, 2.3, y + 0.95, "row filters", 7.5, GREY)
    square(axes, 2.75, y + 0.45, 2.3, 1.4, LIGHT_GREEN, GREEN)
    square(axes, 3.6, y + 0.45, 0.2, 1.4, LIGHT_ORANGE, ORANGE)
    write(axes, 3.9, y + 0.24, "z: 256 KB, in the second-level cache", 8, INK)
    write(axes, 4.42, y + 0.95, "transform\n16 pixels of all\nchannels at a time:\nfirst-level cache", 7, INK)
    write(axes, 3.9, y + 2.1, "a row a channel,\na column a pixel", 8, GREY)
    arrow(axes, (5.15, y + 1.2), (5.85, y + 1.2))
    write(axes, 5.5, y + 0.92, "column\nfilters", 7.5, GREY)
    for sheet in reversed(range(7)):
        x, top = 6.0 + 0.06 * sheet, y + 0.75 - 0.06 * sheet
        square(axes, x, top, 1.1, 1.0, SOFT, GREY)
        square(axes, x, top + 0.34, 1.1, 0.18, LIGHT_ORANGE, ORANGE)
    write(axes, 6.75, y + 2.1, "y: all channels", 8, GREY)
