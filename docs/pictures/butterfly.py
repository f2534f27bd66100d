"""Draws the hadamard convolution of 8 channels: rows, three stages of sums and differences, columns."""

from __future__ import annotations

from matplotlib.figure import Figure
from style import BLUE, GREY, INK, ORANGE, arrow, canvas, grid, square, write

import explainfix_ext as efx

LINES, TOP, STEP = 8, 0.72, 0.34


def draw() -> Figure:
    figure, axes = canvas(8, 3.75)
    filters = efx.make_bank("hadamard", LINES, LINES, 3, seed=0).hadamard
    assert filters is not None
    starts = (2.35, 3.45, 4.55)
    for line in range(LINES):
        y = TOP + STEP * line
        write(axes, 0.3, y, f"x{line}", 9)
        arrow(axes, (0.5, y), (0.75, y), head=False)
        grid(axes, [filters.rows[0, 0, 0, line].tolist()], 0.75, y - 0.07, 0.14, 1.0)
        arrow(axes, (1.17, y), (starts[0], y), head=False)
        arrow(axes, (starts[-1] + 0.95, y), (6.4, y), head=False)
        grid(axes, [[value] for value in filters.columns[0, line].tolist()], 6.43, y - 0.13, 0.087, 1.0)
        arrow(axes, (6.5, y), (7.25, y))
        write(axes, 7.45, y, f"y{line}", 9)
    for stage, x in enumerate(starts):
        for line in range(LINES):
            other, y = line ^ 1 << stage, TOP + STEP * line
            minus = line >> stage & 1
            arrow(axes, (x, y), (x + 0.95, y), ORANGE if minus else BLUE, head=False)
            arrow(axes, (x, TOP + STEP * other), (x + 0.95, y), BLUE, head=False)
            square(axes, x + 0.95 - 0.025, y - 0.025, 0.05, 0.05, INK, INK)
    for x, words in ((0.96, "row filter\nof the input"), (3.9, "3 = log2 8 stages of sums and differences"),
                     (6.45, "column filter\nof the output")):  # fmt: skip
        write(axes, x, 0.3, words, 9)
    write(axes, 3.9, 3.5, "blue: added    orange: subtracted    8 additions a stage", 8.5, GREY)
    return figure
