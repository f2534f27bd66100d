"""Draws what a training step keeps of a block's activations: counted, in torch and in the modes of save_memory."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import BLUE, GREY, INK, ORANGE, PAPER, arrow, box, canvas, square, write
from torch import nn

import explainfix_ext as efx

LAYERS = ("1x1", "norm1", "relu1", "fixed 3x3", "norm2", "relu2", "1x1 ", "norm3")
# The tensors between them: that which layer i reads. A ReLU keeps its output, which is what the next layer reads.
KEPT_AT = {"1x1": 0, "norm1": 1, "relu1": 3, "fixed 3x3": 3, "norm2": 4, "relu2": 6, "1x1 ": 6, "norm3": 7}
ROWS = ("torch", "exact", "recompute", "int8")
PITCH, LEFT = 0.74, 1.4


def draw() -> Figure:
    figure, axes = canvas(8, 3.55)
    for place, name in enumerate(LAYERS):
        box(axes, LEFT + PITCH * place + 0.2, 0.25, 0.48, 0.42, name.strip().replace(" ", "\n"), size=7.5)
        arrow(axes, (LEFT + PITCH * place - 0.05, 0.46), (LEFT + PITCH * place + 0.2, 0.46))
    for line, mode in enumerate(ROWS):
        shares = kept("off" if mode == "torch" else mode)
        y = 0.95 + 0.5 * line
        write(axes, 1.15, y + 0.15, mode, 9.5, BLUE, ha="right", family="DejaVu Sans Mono")
        for place in range(len(LAYERS)):
            if place not in (2, 5):  # what a ReLU reads, it never keeps
                _tensor(axes, LEFT + PITCH * place - 0.08, y, shares.get(place, 0.0))
        write(axes, LEFT + PITCH * 8 + 0.2, y + 0.15, f"{sum(shares.values()):.1f}", 9.5)
    write(axes, LEFT + PITCH * 8 + 0.2, 0.46, "kept", 9)
    _legend(axes, 3.15)
    return figure


def _tensor(axes: Axes, x: float, y: float, share: float) -> None:
    """Draws a tensor, filled as far as it is kept."""
    square(axes, x, y, 0.3, 0.3, PAPER, GREY, 0.8)
    filled = 0.3 * min(max(share, 0.15), 1.0)
    if share > 0.005:
        square(axes, x, y + 0.3 - filled, 0.3, filled, BLUE if share > 0.9 else ORANGE, GREY, 0.8)


def _legend(axes: Axes, y: float) -> None:
    for x, share, words in ((1.3, 1.0, "kept whole"), (2.75, 0.25, "kept in 8 bits"), (4.4, 0.03, "a bit an element"),
                            (6.1, 0.0, "not kept: made again")):  # fmt: skip
        _tensor(axes, x, y, share)
        write(axes, x + 0.4, y + 0.15, words, 8.5, INK, ha="left")


class Earlier(nn.Module):
    """Stands for the layers before: what they give is an activation, while a model's input counts as the user's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def kept(mode: str) -> dict[int, float]:
    """Counts a step of the block: place of a tensor -> the share of an activation that is kept for it."""
    torch.manual_seed(0)
    channels, x = 32, torch.randn(4, 32, 32, 32)
    spatial = efx.FixedConv2d(channels, channels, 3, padding=1, bias=False, init="dct2", seed=0)
    one = [nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2)]
    norm = [nn.BatchNorm2d(channels) for _ in range(3)]
    modules = (one[0], norm[0], nn.ReLU(), spatial, norm[1], nn.ReLU(), one[1], norm[2])
    block = nn.Sequential()
    for name, module in zip(LAYERS, modules, strict=True):
        block.add_module(name, module)
    efx.save_memory(block, mode)
    report = efx.memory_report(nn.Sequential(Earlier(), block), x.requires_grad_(), loss=torch.sum)
    shares: dict[int, float] = {}
    for (name, _), size in report.ours.kept.items():
        place = KEPT_AT[name.removeprefix("1.")]
        shares[place] = shares.get(place, 0.0) + size / x.nbytes
    return shares
