"""This module draws spectra and filters. Each function returns a matplotlib Figure; `figure.savefig(path)` writes it.

`explainfix_ext.explain_plots` offers the functions to users. Nothing is shown on a screen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from explainfix_ext._support.layout import as_pair, as_picture
from explainfix_ext._support.pictures import new_figure
from explainfix_ext._support.text import times
from explainfix_ext.filters.basis import compose_weight, dct_basis, frequency_order
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.replaceable import REPLACEABLE

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError:
    raise ImportError('pictures need matplotlib: pip install "explainfix_ext[demo]"') from None

_DPI = 150
_ROW, _ICON = 0.2, 0.5  # inches: the height of a layer's row, and the largest height of an icon
_COLOURS = colormaps["RdBu_r"].with_extremes(bad="0.75")
_RATIOS = (0, 0.25, 0.5, 1, 2, 4, 16)  # marks on the scale of colours


class Energies(Protocol):
    """Energies are the attributes of `Spectra` that a picture needs.

    spectra.py imports this module, so this one cannot import the class.
    """

    @property
    def ed(self) -> dict[str, Tensor]: ...
    @property
    def e0(self) -> dict[str, Tensor]: ...
    @property
    def kernels(self) -> dict[str, tuple[int, int]]: ...
    @property
    def what(self) -> str: ...


def plot_spectra(
    spectra: Energies, other: Energies | None = None, *, names: Sequence[str] = ("", ""), width: float = 8.0
) -> Figure:
    """Draws e_d as a heat map: a row for each layer, a column for each DCT function from low to high frequency.

    There is a panel for each kernel size, and the functions are drawn below their columns. Colours are shares of the
    row's energy, which stands to the right of the row; a row without energy is grey.

    Args:
        spectra: what is drawn on the left.
        other: what is drawn on the right, such as the network after training, or with saliency, or another network.
        names: titles of the two sides.
        width: the width of a side, in inches.

    Returns:
        A Figure.

    Examples:
        >>> before, after = explainsteer(nn.Conv2d(3, 8, 3)), explainsteer(FixedConv2d(3, 8, 3, seed=0))
        >>> plot_spectra(before, after, names=("learned", "dct2")).axes[0].get_title().splitlines()[0]
        'learned'
    """
    sides = [side for side in (spectra, other) if side is not None]
    figure, panels = _panels(sides, names, width, [list(side.ed) for side in sides], below=_ICON)
    for p in panels:
        ed, functions = sides[p.side].ed, math.prod(p.kernel)
        ratios = functions * torch.stack([ed[name] / ed[name].sum() for name in p.layers])
        p.axes.imshow(_colour_place(ratios).numpy(), cmap=_COLOURS, vmin=0, vmax=1, aspect="auto")
        p.axes.set(xticks=[], facecolor="0.75")
        _label_rows(p, ed)
        _draw_icons(p, width)
    label = "share of the layer's energy, over that of a flat spectrum"
    bar = figure.colorbar(ScalarMappable(cmap=_COLOURS), ax=figure.axes, label=label, aspect=30)
    bar.set_ticks([_colour_place(ratio) for ratio in _RATIOS], labels=[f"{ratio:g}" for ratio in _RATIOS])
    what = "of which DCT-II functions the filters of each layer are made"
    figure.suptitle(f"ExplainSteer e_d: {what}\n(numbers: energy of the layer)")
    return figure


def plot_e0(
    spectra: Energies, other: Energies | None = None, *, names: Sequence[str] = ("", ""), width: float = 8.0
) -> Figure:
    """Draws e_0 of each layer that has it as a bar: the share of each frequency, both directions added.

    The number to the right of a bar is the sum of e_0.

    Args:
        spectra, other, names, width: as `plot_spectra` takes them.

    Returns:
        A Figure.

    Raises:
        ValueError: no layer has a square kernel, or is of signals.

    Examples:
        >>> plot_e0(explainsteer(nn.Conv2d(3, 8, 3))).axes[0].get_xlabel()
        '% of e_0, 3x3 kernels'
    """
    sides = [side for side in (spectra, other) if side is not None]
    if not any(side.e0 for side in sides):
        raise ValueError("spectra must have a layer with a square kernel: e_0 adds two directions of equal size")
    figure, panels = _panels(sides, names, width, [list(side.e0) for side in sides])
    for p in panels:
        e0, size = sides[p.side].e0, max(p.kernel)
        shares = 100 * torch.stack([e0[name] / e0[name].sum() for name in p.layers]).nan_to_num().numpy()
        left = shares.cumsum(1) - shares
        for k in range(size):
            colour = colormaps["viridis"](k / (size - 1))
            p.axes.barh(range(len(p.layers)), shares[:, k], left=left[:, k], color=colour)
        p.axes.set(xlim=(0, 100), xlabel=f"% of e_0, {times(p.kernel)} kernels")
        _label_rows(p, e0)
    label = "frequency, from 0 (constant) to 1 (the kernel's highest)"
    figure.colorbar(ScalarMappable(cmap="viridis"), ax=figure.axes, label=label, aspect=30)
    figure.suptitle("ExplainSteer e_0: share of each frequency, vertical and horizontal added\n(numbers: sum of e_0)")
    return figure


def plot_filters(conv: nn.Conv1d | nn.Conv2d, count: int = 64) -> Figure:
    """Draws some filters of a layer, evenly spaced over all of them, on one colour scale. Only these are composed.

    Args:
        conv: the layer, learned or fixed.
        count: the largest number of filters to draw.

    Returns:
        A Figure.

    Raises:
        TypeError: conv is neither a Conv2d nor a Conv1d.
        ValueError: count is below 1.

    Examples:
        >>> plot_filters(FixedConv2d(16, 32, 3, seed=0), count=16).axes[0].get_title()
        '16 of 512 filters, 32x16x3x3, fixed: hadamard'
    """
    if not isinstance(conv, REPLACEABLE):
        raise TypeError(f"conv must be a Conv2d or a Conv1d, got {type(conv).__name__}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    kh, kw = as_pair(conv.kernel_size)
    inputs = conv.in_channels // conv.groups
    total = conv.out_channels * inputs
    count = min(count, total)
    filters, kind = _some_filters(conv, torch.linspace(0, total - 1, count, dtype=torch.float64).round().long())
    columns = math.ceil(math.sqrt(count * kh / kw))
    rows = math.ceil(count / columns)
    tiles = filters.new_full((rows * columns, kh + 1, kw + 1), math.nan)  # a gap below and right of each
    tiles[:count, :kh, :kw] = filters
    mosaic = tiles.reshape(rows, columns, kh + 1, kw + 1).transpose(1, 2).flatten(2).flatten(0, 1)[:-1, :-1]
    figure = new_figure(7, 1 + 5.5 * mosaic.shape[0] / mosaic.shape[1], _DPI)
    axes = figure.subplots()
    limit = float(filters.abs().max()) or 1.0
    image = axes.imshow(mosaic.numpy(), cmap=_COLOURS, vmin=-limit, vmax=limit)
    axes.set_axis_off()
    size = times((conv.out_channels, inputs, kh, kw))
    axes.set_title(f"{count:,} of {total:,} filters, {size}, {kind}", fontsize=10)
    figure.colorbar(image, label="weight")
    return figure


@dataclass(frozen=True)
class _Panel:
    """A _Panel shows the layers of one kernel size on one side of a figure.

    `rows` is the number of layers on that side which has more of them, so that rows of both sides are aligned.
    """

    axes: Axes
    rows: int
    side: int
    kernel: tuple[int, int]
    layers: list[str]


def _panels(
    sides: Sequence[Energies], names: Sequence[str], width: float, layers: Sequence[list[str]], below: float = 0.0
) -> tuple[Figure, list[_Panel]]:
    """Makes a figure with a column of panels for each side, and a row of panels for each kernel size of its `layers`.

    Below each panel `below` inches are left free.
    """
    pairs = list(zip(sides, layers, strict=True))
    kernels = sorted({side.kernels[n] for side, some in pairs for n in some})
    groups = [[[n for n in some if side.kernels[n] == kernel] for side, some in pairs] for kernel in kernels]
    counts = [max(map(len, group)) for group in groups]
    figure = new_figure(width * len(sides), 1.2 + sum(map(_height, counts)) + (0.6 + below) * len(kernels), _DPI)
    grid = figure.subplots(len(kernels), len(sides), squeeze=False, height_ratios=list(map(_height, counts)))
    for axes, side, name in zip(grid[0], sides, names, strict=False):
        axes.set_title(f"{name}\n{side.what}" if name else side.what, fontsize=9)
    panels = []
    for row, rows, kernel, group in zip(grid, counts, kernels, groups, strict=True):
        for i, (axes, some) in enumerate(zip(row, group, strict=True)):
            if some:
                panels.append(_Panel(axes, rows, i, kernel, some))
            else:
                axes.set_axis_off()
    return figure, panels


def _height(rows: int) -> float:
    """Returns a panel's height in inches; with fewer than 4 rows, labels and icons below would take all the space."""
    return _ROW * max(4, rows)


def _label_rows(panel: _Panel, spectra: dict[str, Tensor]) -> None:
    """Writes the layers' names to the left of their rows, and the sums of their spectra to the right."""
    panel.axes.set_ylim(panel.rows - 0.5, -0.5)
    panel.axes.set_yticks(range(len(panel.layers)), [name or "(model)" for name in panel.layers], fontsize=7)
    for place, name in enumerate(panel.layers):
        text = f" {spectra[name].sum():.3g}"
        panel.axes.text(1, place, text, fontsize=7, va="center", transform=panel.axes.get_yaxis_transform())


def _draw_icons(panel: _Panel, width: float) -> None:
    """Draws the DCT functions of a panel's kernel below its columns."""
    functions = dct_basis(panel.kernel)[frequency_order(panel.kernel)]
    height, gap = (inches / _height(panel.rows) for inches in (min(_ICON, 0.7 * width / len(functions)), 0.07))
    axes = panel.axes.inset_axes((0, -height - gap, 1, height))
    for j, function in enumerate(functions):
        limit, left, right = float(function.abs().max()), j - 0.42, j + 0.42
        axes.imshow(function.numpy(), cmap="gray", vmin=-limit, vmax=limit, extent=(left, right, 0, 1), aspect="auto")
        axes.add_patch(Rectangle((left, 0), 0.84, 1, fill=False, edgecolor="0.5", linewidth=0.5, clip_on=False))
    axes.set(xlim=(-0.5, len(functions) - 0.5), ylim=(0, 1), xticks=[], yticks=[])
    axes.set_xlabel(f"DCT-II functions of {times(panel.kernel)} kernels, low to high frequency", fontsize=8)
    axes.spines[:].set_visible(False)


def _some_filters(conv: Any, picked: Tensor) -> tuple[Tensor, str]:
    """Returns filters (n, kh, kw) float64, at places (n,) of the flattened (O, I/groups), and a word on their kind."""
    if isinstance(conv, FixedConv):
        bank = conv.bank.with_coefficients()
        index_or_coeff = bank.steering.cpu().flatten(0, 1)[picked][None]
        filters = compose_weight(bank.basis.cpu(), index_or_coeff, bank.scale, torch.float64)[0]
        return filters, f"fixed: {'given filters' if bank.recipe is None else bank.recipe.init}"
    filters = as_picture(conv.weight.detach()).cpu().flatten(0, 1)[picked].double()
    return filters, "learned" if conv.weight.requires_grad else "frozen"


def _colour_place(ratio: Any) -> Any:
    """Places a ratio on the scale of colours: 0 at 0, 1 at 0.5, infinity at 1."""
    return ratio / (1 + ratio)
