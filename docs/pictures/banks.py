"""Draws what a layer of 64 x 64 filters of 3 x 3 stores: a weight, or a bank of one of three kinds."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, GREEN, GREY, INK, LIGHT_BLUE, LIGHT_GREEN, LIGHT_ORANGE, ORANGE, SOFT, canvas, square, write

import explainfix_ext as efx

SIDE = 1.05  # inches that 64 channels take


def draw() -> Figure:
    figure, axes = canvas(8, 2.95)
    banks = [(init, efx.make_bank(init, 64, 64, 3, seed=0)) for init in ("dct2", "ghaar4_s1", "hadamard")]
    _sheets(axes, 0.45, 9, SOFT, GREY)
    _words(axes, 0.95, "learned weight", "9 numbers\na filter", 64 * 64 * 9 * 4, INK)
    _sheets(axes, 2.5, 1, LIGHT_BLUE, BLUE)
    _words(axes, 3.0, "index", "1 byte a filter:\nwhich function", banks[0][1].nbytes, BLUE)
    _sheets(axes, 4.45, 4, LIGHT_ORANGE, ORANGE)
    _words(axes, 4.95, "coeff", "L numbers a filter,\nhere 4", banks[1][1].nbytes, ORANGE)
    x, y, third = 6.6, 0.75, 0.14
    square(axes, x, y, third, SIDE, LIGHT_GREEN, GREEN, 1)
    square(axes, x + third + 0.1, y - third - 0.1, SIDE, third, LIGHT_GREEN, GREEN, 1)
    write(axes, x + third + 0.1 + SIDE / 2, y + SIDE / 2, "signs\nof H:\nnot stored", 8, GREY)
    write(axes, x - 0.12, y + SIDE / 2, "columns", 7.5, GREY, rotation=90)
    write(axes, x + third + 0.1 + SIDE / 2, y - third - 0.22, "rows", 7.5, GREY)
    _words(axes, 7.2, "hadamard", "3 numbers an output,\n3 an input", banks[2][1].nbytes, GREEN)
    write(axes, 0.25, 0.75 + SIDE / 2, "64 outputs", 7.5, GREY, rotation=90)
    write(axes, 0.95, 1.93, "64 inputs", 7.5, GREY)
    return figure


def _sheets(axes: Axes, x: float, count: int, face: str, edge: str) -> None:
    """Draws a number for each filter as a sheet, and several as a pile."""
    for sheet in reversed(range(count)):
        shift = 0.045 * sheet
        square(axes, x + shift, 0.75 - shift, SIDE, SIDE, face, edge, 1)


def _words(axes: Axes, x: float, name: str, what: str, size: int, colour: str) -> None:
    write(axes, x, 2.13, name, 10, colour, family="DejaVu Sans Mono" if name != "learned weight" else "DejaVu Sans")
    write(axes, x, 2.42, what, 8.5, GREY)
    write(axes, x, 2.74, f"{size:,} bytes", 9)
