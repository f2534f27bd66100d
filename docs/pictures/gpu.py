"""Draws how the CUDA hadamard kernel walks: the threads of a line hold its channels and go down the image."""

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
    PAPER,
    SOFT,
    arrow,
    canvas,
    square,
    write,
)

CELL, PIXELS = 0.3, 7


def draw() -> Figure:
    figure, axes = canvas(8, 3.9)
    _image(axes)
    _channels(axes)
    _sums(axes)
    return figure


def _image(axes: Axes) -> None:
    write(axes, 1.3, 0.25, "x: a warp has two columns", 9.5)
    for row in range(PIXELS):
        for column in range(PIXELS):
            face = PAPER if row > 3 else SOFT
            if row == 3 and 1 <= column <= 4:
                face = LIGHT_ORANGE
            square(axes, 0.25 + CELL * column, 0.55 + CELL * row, CELL, CELL, face, GREY, 0.6)
    for column in (2, 3):
        arrow(axes, (0.4 + CELL * column, 0.62), (0.4 + CELL * column, 0.5 + CELL * (PIXELS + 1)), BLUE)
    write(
        axes,
        1.3,
        3.2,
        "at each pixel it reads four\n(orange), filters across for\nboth columns, and goes down",
        8.5,
        GREY,
    )


def _channels(axes: Axes) -> None:
    write(axes, 4.0, 0.25, "32 threads x 8 channels = 256", 9.5)
    places = (0, 1, 2, 3, None, 31)
    for place, thread in enumerate(places):
        x = 2.85 + 0.42 * place
        if thread is None:
            write(axes, x + 0.15, 1.15, "...", 10, GREY)
            continue
        for channel in range(8):
            square(axes, x, 0.62 + 0.13 * channel, 0.3, 0.13, LIGHT_BLUE, BLUE, 0.5)
        write(axes, x + 0.15, 1.8, f"t{thread}", 8, GREY)
    for first, second, drop in ((0, 1, 0.0), (2, 3, 0.0), (0, 2, 0.12), (1, 3, 0.24)):
        y = 1.98 + drop
        arrow(axes, (3.0 + 0.42 * first, y), (3.0 + 0.42 * second, y), ORANGE)
        arrow(axes, (3.0 + 0.42 * second, y), (3.0 + 0.42 * first, y), ORANGE)
    write(axes, 4.0, 2.5, "the transform of 256 channels:", 8.5)
    words = """3 stages in a thread's registers,
5 between threads, by shuffles
(512 and 1024 channels: 1 or 2 more,
through shared memory)"""
    write(axes, 4.0, 3.1, words, 8.5, GREY)


def _sums(axes: Axes) -> None:
    write(axes, 6.7, 0.25, "three outputs are begun", 9.5)
    rows = (("y[h \N{MINUS SIGN} 1]", 3, "complete: written"), ("y[h]", 2, ""), ("y[h + 1]", 1, ""))
    for place, (name, taps, words) in enumerate(rows):
        y = 0.75 + 0.6 * place
        write(axes, 6.1, y + 0.15, name, 9, INK, ha="right")
        for tap in range(3):
            there = tap < taps
            square(axes, 6.25 + 0.3 * tap, y, 0.3, 0.3, LIGHT_GREEN if there else PAPER, GREEN if there else GREY, 0.8)
        if words:
            arrow(axes, (7.2, y + 0.15), (7.6, y + 0.15))
            write(axes, 6.7, y + 0.43, words, 8, GREY)
    words = """a transformed pixel is multiplied by
the three taps of each column filter
and added to three sums; then
they move up by one"""
    write(axes, 6.7, 3.1, words, 8.5, GREY)
