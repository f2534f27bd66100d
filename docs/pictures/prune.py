"""Draws what pruning does to two layers in a row: filters set to zero, channels found useless, the smaller network."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, GREY, INK, LIGHT_BLUE, LIGHT_ORANGE, ORANGE, PAPER, arrow, canvas, square, write
from torch import nn

import explainfix_ext as efx

CELL = 0.2
# Filters of the first layer (6 x 3) and of the second (4 x 6) that score low: those that write channel 1, those that
# read channel 4, and two more.
FIRST = [[9, 8, 9], [1, 1, 1], [8, 9, 1], [9, 9, 8], [8, 9, 9], [9, 8, 8]]
SECOND = [[9, 8, 9, 9, 1, 8], [8, 9, 8, 1, 1, 9], [9, 9, 9, 8, 1, 8], [8, 9, 9, 8, 1, 9]]


def draw() -> Figure:
    figure, axes = canvas(8, 3.3)
    masked = [torch.tensor(scores) > 1 for scores in (FIRST, SECOND)]
    kept = channels()
    gone = [channel for channel in range(6) if channel not in kept]
    _pair(axes, 0.55, "1. the lowest scores\nbecome zero", masked, [], list(range(6)))
    _pair(axes, 3.2, "2. channels that nothing writes,\nor nothing reads", masked, gone, list(range(6)))
    _pair(axes, 5.95, "3. both layers are cut,\nand the result is verified", [masked[0][kept], masked[1][:, kept]], [],
          kept)  # fmt: skip
    return figure


def channels() -> list[int]:
    """Prunes two such layers, and returns the channels between them that stay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3))
    scores = {"0": torch.tensor(FIRST).double(), "2": torch.tensor(SECOND).double()}
    low = sum(int((s == 1).sum()) for s in scores.values()) / sum(s.numel() for s in scores.values())
    report = efx.channelprune(model, torch.randn(1, 3, 8, 8), amount=low, criterion=scores, max_layer_amount=1.0)
    return report.plan["layers"]["0"]["outputs"]


def _pair(axes: Axes, x: float, words: str, masks: list[torch.Tensor], gone: list[int], names: list[int]) -> None:
    """Draws the filters of both layers: a row an output, a column an input."""
    first, second = masks
    write(axes, x + 0.75, 0.3, words, 9)
    for row, line in enumerate(first.tolist()):
        for column, there in enumerate(line):
            _cell(axes, x + CELL * column, 0.7 + CELL * row, there, row in gone)
        write(axes, x - 0.1, 0.8 + CELL * row, str(names[row]), 7, ORANGE if row in gone else GREY)
    across = x + CELL * 3 + 0.35
    for row, line in enumerate(second.tolist()):
        for column, there in enumerate(line):
            _cell(axes, across + CELL * column, 2.15 + CELL * row, there, column in gone)
    for column, name in enumerate(names):
        write(axes, across + CELL * (column + 0.5), 2.07, str(name), 7, ORANGE if column in gone else GREY)
    bottom = 0.7 + CELL * len(first)
    arrow(axes, (x + CELL * 3 + 0.05, (0.7 + bottom) / 2), (across + CELL * len(names) / 2, 1.92))
    write(axes, x + 0.3, bottom + 0.13, "layer 1", 8, INK)
    write(axes, across + CELL * len(names) / 2, 3.1, "layer 2", 8, INK)


def _cell(axes: Axes, x: float, y: float, there: bool, gone: bool) -> None:
    face = LIGHT_ORANGE if gone else LIGHT_BLUE if there else PAPER
    square(axes, x, y, CELL, CELL, face, ORANGE if gone else BLUE if there else GREY, 0.7)
