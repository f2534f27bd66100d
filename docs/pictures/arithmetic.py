"""Draws how many operations an output takes for each pixel, against the number of channels, by kind of bank."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure
from style import BLUE, GREEN, GREY, INK, ORANGE, PAPER, SETTINGS, SOFT

import explainfix_ext as efx

CHANNELS = (8, 16, 32, 64, 128, 256, 512)


def draw() -> Figure:
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8, 3.4), facecolor=PAPER)
        axes = figure.add_axes((0.09, 0.16, 0.6, 0.78), facecolor=PAPER)
        dense = [9 * channels for channels in CHANNELS]
        lines = {"dense: 9 multiply-adds a filter": (dense, INK)}
        for init, name, colour in (
            ("ghaar4_s1", "low_rank: 4 multiply-adds a filter", ORANGE),
            ("dct2", "index: 1 addition a filter", BLUE),
            ("hadamard", "hadamard: 6 multiply-adds and\nlog2 C additions, for all filters", GREEN),
        ):
            lines[name] = ([operations(init, channels) for channels in CHANNELS], colour)
        for name, (counts, colour) in lines.items():
            axes.plot(CHANNELS, counts, "o-", color=colour, markersize=3.5, linewidth=1.6)
            words = f"{name}\n({counts[-2]:,.0f} at 256 channels)"
            axes.annotate(words, (CHANNELS[-1], counts[-1]), (10, 0), textcoords="offset points", va="center",
                          color=colour, fontsize=8.5, annotation_clip=False)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="channels C, in and out", xlim=(7, 560))
        axes.set_xticks(CHANNELS, [str(channels) for channels in CHANNELS])
        axes.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
        axes.minorticks_off()
        axes.set_ylabel("operations an output and pixel", color=INK)
        axes.xaxis.label.set_color(INK)
        axes.tick_params(colors=GREY, labelsize=8.5)
        axes.grid(color=SOFT)
        for side in axes.spines.values():
            side.set_color(GREY)
    return figure


def operations(init: str, channels: int) -> float:
    """Counts as `summary` does, for an image of one pixel."""
    conv = efx.FixedConv2d(channels, channels, 3, padding=1, init=init, seed=0)
    layer = efx.summary(conv, (1, channels, 1, 1)).layers[0]
    assert layer.multiply_adds is not None
    return layer.multiply_adds / channels
