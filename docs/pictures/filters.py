"""Draws what a fixed filter is: a few DCT functions, picked or mixed."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, GREY, arrow, canvas, grid, write

import explainfix_ext as efx

CELL = 0.13
ROWS = (
    ("dct2", 0, 1, "one function"),
    ("sdct4", 0, 1, "plus or minus one"),
    ("ghaar4_s1", 0, 0, "four, normal weights"),
    ("hadamard", 3, 5, "a column times a row"),
)


def draw() -> Figure:
    figure, axes = canvas(8, 3.55)
    write(axes, 1.35, 0.25, "the basis: 9 DCT functions", 10)
    for number, function in enumerate(efx.dct_basis((3, 3)).tolist()):
        x, y = 0.45 + 0.66 * (number % 3), 0.55 + 0.92 * (number // 3)
        grid(axes, function, x, y, CELL * 1.2, 0.7)
        write(axes, x + 0.24, y + 0.6, f"B{number}", 8, GREY)
    write(axes, 6.9, 0.25, "a filter", 10, ha="left")
    for line, (init, o, i, words) in enumerate(ROWS):
        y = 0.5 + 0.78 * line
        write(axes, 2.7, y + 0.1, init, 9.5, BLUE, ha="left", family="DejaVu Sans Mono")
        write(axes, 2.7, y + 0.33, words, 8, GREY, ha="left")
        _sum(axes, efx.make_bank(init, 8, 8, 3, seed=1), o, i, y)
    return figure


def _sum(axes: Axes, bank: efx.FilterBank, o: int, i: int, y: float) -> None:
    """Draws filter W[o, i] of a bank as DCT functions, with their numbers, and what they add up to."""
    functions, weight = efx.dct_basis((3, 3)), bank.weight()[o, i].double()
    factors = (functions * weight).sum((1, 2))
    factors = factors / factors.abs().max()
    terms = [(number, factor) for number, factor in enumerate(factors.tolist()) if abs(factor) > 1e-6]
    equal = all(abs(abs(factor) - 1) < 1e-6 for _, factor in terms)
    for place, (number, factor) in enumerate(terms):
        x = 4.15 + 0.74 * place
        sign = "" if place == 0 and factor > 0 else "+" if factor > 0 else "\N{MINUS SIGN}"
        write(axes, x + 0.28, y + 0.2, sign if equal else f"{sign}{abs(factor):.1f}", 8, ha="right")
        grid(axes, functions[number].tolist(), x + 0.32, y, CELL, 0.7)
        write(axes, x + 0.52, y + 0.5, f"B{number}", 7, GREY)
    arrow(axes, (4.2 + 0.74 * len(terms), y + 0.2), (7.3, y + 0.2))
    grid(axes, weight.tolist(), 7.4, y, CELL, float(weight.abs().max()) if len(terms) > 1 else 0.7)
