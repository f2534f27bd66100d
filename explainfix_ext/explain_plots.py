"""Pictures of spectra, filters and pruning: every function returns a matplotlib Figure, and shows nothing on a screen.
`figure.savefig(path)` writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .basis import dct_basis, frequency_order
from .conv import FixedConv2d
from .explain import Spectra
from .prune.plan import Plan, zeros_of
from .prune.report import PruneReport
from .reference import compose_weight
from .saliency import spatial_convolutions

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
except ImportError:
    raise ImportError('pictures need matplotlib: pip install "explainfix_ext[demo]"') from None

_SIDE, _ROW, _ICONS = 8.0, 0.2, 0.5  # inches: width of a side; height of a layer, and at most of an icon
_TICKS = (0, 0.25, 0.5, 1, 2, 4, 16)
_STATES = {"kept": (0.12, 0.47, 0.71), "zero": (0.85, 0.85, 0.85), "removed with its channel": (0.25, 0.25, 0.25)}


def plot_spectra(spectra: Spectra, other: Spectra | None = None, *, names: Sequence[str] = ("", "")) -> Figure:
    """Heat map of e_d: a row for each layer, a column for each DCT function, which is drawn below it, from low to high
    frequency; one panel for each kernel size. Each row shows shares; the number behind it is the layer's energy.

    Args:
        spectra: on the left.
        other: on the right: the network after training, with saliency, or another network.
        names: what the sides are.

    Returns:
        A Figure.

    Example:
        >>> before, after = explainsteer(nn.Conv2d(3, 8, 3)), explainsteer(FixedConv2d(3, 8, 3, seed=0))
        >>> plot_spectra(before, after, names=("learned", "dct2")).axes[0].get_title().splitlines()[0]
        'learned'
    """
    sides = [side for side in (spectra, other) if side is not None]
    figure, panels = _panels(sides, names, [list(side.ed) for side in sides], icons=True)
    for p in panels:
        flat = math.prod(p.kernel) * torch.stack([_shares(sides[p.side].ed[name]) for name in p.layers])
        p.axes.imshow(_colour_place(flat), cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
        p.axes.set_xticks([])
        _label_rows(p, sides[p.side].ed)
        assert p.icons is not None
        _draw_icons(p.icons, p.kernel)
    label = "share of the layer's energy, over that of a flat spectrum"
    bar = figure.colorbar(ScalarMappable(cmap="RdBu_r"), ax=figure.axes, label=label, aspect=30)
    bar.set_ticks([_colour_place(ratio) for ratio in _TICKS], labels=[f"{ratio:g}" for ratio in _TICKS])
    figure.suptitle(
        "ExplainSteer e_d: of which DCT-II functions the filters of each layer are made\n(numbers: energy of the layer)"
    )
    return figure


def plot_e0(spectra: Spectra, other: Spectra | None = None, *, names: Sequence[str] = ("", "")) -> Figure:
    """Bars of e_0, for each layer with a square kernel: the share of each frequency, vertical and horizontal added; the
    number behind a bar is the sum.

    Args:
        spectra, other, names: as `plot_spectra` takes them.

    Returns:
        A Figure.

    Raises:
        ValueError: no layer has a square kernel.

    Example:
        >>> plot_e0(explainsteer(nn.Conv2d(3, 8, 3))).axes[0].get_xlabel()
        '% of e_0, 3x3 kernels'
    """
    sides = [side for side in (spectra, other) if side is not None]
    if not any(side.e0 for side in sides):
        raise ValueError("spectra must have a layer with a square kernel: e_0 adds two directions of equal size")
    figure, panels = _panels(sides, names, [list(side.e0) for side in sides])
    for p in panels:
        e0, size = sides[p.side].e0, p.kernel[0]
        shares = 100 * torch.stack([_shares(e0[name]) for name in p.layers]).nan_to_num()
        left = shares.cumsum(1) - shares
        for k in range(size):
            colour = colormaps["viridis"](k / (size - 1))
            p.axes.barh(range(len(p.layers)), shares[:, k], left=left[:, k], color=colour)
        p.axes.set(xlim=(0, 100), ylim=(len(p.layers) - 0.5, -0.5), xlabel=f"% of e_0, {_times(p.kernel)} kernels")
        _label_rows(p, e0)
    label = "frequency, from 0 (constant) to 1 (the kernel's highest)"
    figure.colorbar(ScalarMappable(cmap="viridis"), ax=figure.axes, label=label, aspect=30)
    figure.suptitle("ExplainSteer e_0: share of each frequency, vertical and horizontal added\n(numbers: sum of e_0)")
    return figure


def plot_filters(conv: nn.Conv2d, count: int = 64) -> Figure:
    """Filters of a layer, evenly spaced over all of them, on one colour scale. No other filter is composed.

    Args:
        conv: learned or fixed.
        count: how many, at most.

    Returns:
        A Figure.

    Raises:
        TypeError: conv is no Conv2d.
        ValueError: count is below 1.

    Example:
        >>> plot_filters(FixedConv2d(16, 32, 3, seed=0), count=16).axes[0].get_title()
        '16 of 512 filters, 32x16x3x3, fixed: dct2'
    """
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"conv must be a Conv2d, got {type(conv).__name__}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    kh, kw = conv.kernel_size
    inputs = conv.in_channels // conv.groups
    total = conv.out_channels * inputs
    count = min(count, total)
    filters, kind = _some_filters(conv, torch.linspace(0, total - 1, count, dtype=torch.float64).round().long())
    columns = math.ceil(math.sqrt(count * kh / kw))
    rows = math.ceil(count / columns)
    tiles = filters.new_full((rows * columns, kh + 1, kw + 1), math.nan)  # a gap below and right of each
    tiles[:count, :kh, :kw] = filters
    mosaic = tiles.reshape(rows, columns, kh + 1, kw + 1).transpose(1, 2).flatten(2).flatten(0, 1)[:-1, :-1]
    figure = _figure(7, 1 + 5.5 * mosaic.shape[0] / mosaic.shape[1])
    axes = figure.subplots()
    limit = float(filters.abs().max()) or 1.0
    image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_axis_off()
    axes.set_title(
        f"{count:,} of {total:,} filters, {_times((conv.out_channels, inputs, kh, kw))}, {kind}", fontsize=10
    )
    figure.colorbar(image, label="weight")
    return figure


def plot_kept(pruned: PruneReport | Plan, model: nn.Module | None = None) -> Figure:
    """Map of the filters of every spatial layer, outputs x inputs: kept, zero, or removed with a channel. (The shares,
    as bars: `PruneReport.plot`.)

    Args:
        pruned: what `channelprune` returns, or its plan.
        model: with a plan, the model before pruning.

    Returns:
        A Figure.

    Raises:
        ValueError: a plan comes without a model.

    Example:
        >>> model = torchvision.models.resnet18()
        >>> report = channelprune(model, torch.randn(1, 3, 64, 64), amount=0.5, criterion="l1", dry_run=True)
        >>> plot_kept(report).axes[0].get_title().splitlines()[0]
        'conv1'
    """
    if isinstance(pruned, PruneReport):
        plan = pruned.plan
        costs = {name: cost for name, cost in pruned.before.items() if cost.spatial}
        shapes = {name: (cost.out_channels, cost.filters // cost.out_channels) for name, cost in costs.items()}
    elif model is None:
        raise ValueError("model must be given with a plan, the one before pruning, got None")
    else:
        plan, convs = pruned, spatial_convolutions(model)
        shapes = {name: (m.out_channels, m.in_channels // m.groups) for name, m in convs.items()}
    columns = min(6, len(shapes))
    rows = math.ceil(len(shapes) / columns)
    figure = _figure(2 * columns, 2 * rows + 0.8)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    palette = torch.tensor(list(_STATES.values()))
    for axes, (name, (outputs, inputs)) in zip(panels, shapes.items(), strict=False):
        states = _states(plan, name, outputs, inputs)
        axes.imshow(palette[states], aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f"{inputs:,} inputs", fontsize=8)
        axes.set_ylabel(f"{outputs:,} outputs", fontsize=8)
        axes.set_title(f"{name}\n{(states == 0).double().mean():.1%} kept", fontsize=8)
    for axes in panels[len(shapes) :]:
        axes.set_axis_off()
    patches = [Patch(facecolor=colour, label=label) for label, colour in _STATES.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    figure.suptitle("Spatial filters after pruning")
    return figure


@dataclass(frozen=True)
class _Panel:
    """The layers of one kernel size, on one side of a figure."""

    axes: Axes
    icons: Axes | None
    side: int
    kernel: tuple[int, int]
    layers: list[str]


def _panels(
    sides: Sequence[Spectra], names: Sequence[str], layers: Sequence[list[str]], icons: bool = False
) -> tuple[Figure, list[_Panel]]:
    """A column for each side, a row for each kernel size that `layers` of the sides have, with axes for icons below."""
    pairs = list(zip(sides, layers, strict=True))
    kernels = sorted({side.kernels[n] for side, some in pairs for n in some})
    groups = [[[n for n in some if side.kernels[n] == kernel] for side, some in pairs] for kernel in kernels]
    heights = [max(2 * _ROW, _ROW * max(map(len, group))) for group in groups]
    step = 1 + icons
    below = [min(_ICONS, 0.7 * _SIDE / math.prod(kernel)) for kernel in kernels]
    ratios = [height for both in zip(heights, below, strict=True) for height in both[:step]]
    figure = _figure(_SIDE * len(sides), 1.5 + sum(ratios) + 0.5 * len(kernels))
    grid = figure.subplots(len(ratios), len(sides), squeeze=False, height_ratios=ratios)
    panels = []
    for row, kernel, group in zip(range(0, len(ratios), step), kernels, groups, strict=True):
        for i, some in enumerate(group):
            panels.append(_Panel(grid[row, i], grid[row + 1, i] if icons else None, i, kernel, some))
    for p in panels:
        if not p.layers:
            for axes in (p.axes, p.icons):
                if axes is not None:
                    axes.set_axis_off()
    for axes, side, name in zip(grid[0], sides, names, strict=False):
        axes.set_title(f"{name}\n{side.what}" if name else side.what, fontsize=9)
    return figure, [p for p in panels if p.layers]


def _label_rows(panel: _Panel, spectra: dict[str, Tensor]) -> None:
    """The layers' names before the rows, the sums of their spectra behind."""
    panel.axes.set_yticks(range(len(panel.layers)), [name or "(model)" for name in panel.layers], fontsize=7)
    for place, name in enumerate(panel.layers):
        text = f" {spectra[name].sum():.3g}"
        panel.axes.text(1, place, text, fontsize=7, va="center", transform=panel.axes.get_yaxis_transform())


def _draw_icons(axes: Axes, kernel: tuple[int, int]) -> None:
    """The DCT functions of a kernel in frequency order, one at each whole x."""
    functions = dct_basis(kernel)[frequency_order(kernel)]
    for j, function in enumerate(functions):
        limit = float(function.abs().max())
        place = (j - 0.42, j + 0.42, 0, 1)
        axes.imshow(function, cmap="gray", vmin=-limit, vmax=limit, extent=place, aspect="auto")
        axes.add_patch(Rectangle((j - 0.42, 0), 0.84, 1, fill=False, edgecolor="0.5", linewidth=0.5))
    axes.set(xlim=(-0.5, len(functions) - 0.5), ylim=(-0.04, 1.04), xticks=[], yticks=[])
    axes.set_xlabel(f"DCT-II functions of {_times(kernel)} kernels, low to high frequency", fontsize=8)
    axes.spines[:].set_visible(False)


def _some_filters(conv: Any, picked: Tensor) -> tuple[Tensor, str]:
    """The filters (n, kh, kw) float64 at places (n,) of the flattened (O, I/groups), and what they are."""
    if isinstance(conv, FixedConv2d):
        bank = conv.bank
        steering = bank.steering.cpu().flatten(0, 1)[picked][None]
        filters = compose_weight(bank.basis.cpu(), steering, bank.scale, torch.float64)[0]
        return filters, f"fixed: {'given filters' if bank.recipe is None else bank.recipe.init}"
    filters = conv.weight.detach().cpu().flatten(0, 1)[picked].double()
    return filters, "learned" if conv.weight.requires_grad else "frozen"


def _states(plan: Plan, name: str, outputs: int, inputs: int) -> Tensor:
    """(O, I/groups) of a layer before pruning: which of _STATES each filter is in afterwards."""
    cut = plan["layers"].get(name, {})
    rows = torch.arange(outputs) if cut.get("outputs") is None else torch.tensor(cut["outputs"])
    left = (
        range(inputs) if cut.get("inputs") is None else {k % inputs for k in cut["inputs"]}
    )  # the same in every group
    columns = torch.tensor(sorted(left))
    zero = zeros_of({"zeros": {name: plan["zeros"][name]}})[name] if name in plan["zeros"] else torch.tensor(False)
    states = torch.full((outputs, inputs), 2)
    states[rows[:, None], columns] = zero.long()
    return states


def _colour_place(ratio: Any) -> Any:
    """0 for 0, 0.5 for 1, 1 for infinity."""
    return ratio / (1 + ratio)


def _shares(spectrum: Tensor) -> Tensor:
    """Of its sum; NaN if that is zero."""
    return spectrum / spectrum.sum()


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", dpi=150)
