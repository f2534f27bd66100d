"""Draws which plan "auto" takes, by the kind of bank, on a CPU and on a GPU."""

from __future__ import annotations

from matplotlib.figure import Figure
from style import BLUE, GREEN, GREY, LIGHT_BLUE, LIGHT_GREEN, LIGHT_ORANGE, ORANGE, SOFT, arrow, box, canvas, write

KINDS = ("hadamard bank", "index bank", "index or coeff,\none input a group", "coeff bank")
FILLS = ((LIGHT_GREEN, GREEN), (LIGHT_BLUE, BLUE), (SOFT, GREY), (LIGHT_ORANGE, ORANGE))
CPU = (
    ("hadamard", "kernels up to 16 x 16,\nstride 1 or 2"),
    ("index", "K = 3, 5, 7, stride 1 or 2,\nenough channels"),
    ("depthwise", "one DCT function a channel,\nstride 1"),
    ("low_rank", "few functions for\nso many channels"),
)
GPU = (("hadamard", "3 x 3, 8 to 1024 channels\nby eights"), ("dense", ""), ("depthwise", "K = 3, 5, 7"), ("dense", ""))


def draw() -> Figure:
    figure, axes = canvas(8, 3.9)
    for x, words in ((1.0, "the bank"), (3.8, "on a CPU"), (6.75, "on a GPU")):
        write(axes, x, 0.25, words, 10)
    for line, (kind, (face, edge)) in enumerate(zip(KINDS, FILLS, strict=True)):
        y = 0.5 + 0.68 * line
        box(axes, 0.2, y, 1.6, 0.5, kind, face, edge, 9)
        for x, (plan, needs) in ((2.6, CPU[line]), (5.55, GPU[line])):
            fill = (SOFT, GREY) if plan == "dense" else (face, edge)
            box(axes, x, y, 2.4, 0.5, "", *fill)
            write(axes, x + 0.1, y + 0.25, plan, 9, fill[1], ha="left", family="DejaVu Sans Mono")
            write(axes, x + 2.33, y + 0.25, needs, 7.5, GREY, ha="right")
        arrow(axes, (1.87, y + 0.25), (2.53, y + 0.25))
    box(axes, 2.6, 3.28, 2.4, 0.45, "else dense; and so is a large call\nthat torch does faster", SOFT, GREY, 8)
    box(axes, 5.55, 3.28, 2.4, 0.45, "first call: timed beside torch,\nthe faster one runs from then on", SOFT, GREY, 8)
    return figure
