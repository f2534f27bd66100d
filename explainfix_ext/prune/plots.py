"""The picture of a pruning report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from .report import PruneReport

_INCHES_PER_LAYER = 0.2  # so that names do not touch, however many layers there are


def plot_kept(report: PruneReport, path: Path | BinaryIO) -> None:
    """A row for each spatial layer, in network order: left the share of its filters that are not zero, right that of
    its output channels, both of all that the layer had. A PNG, as high as there are layers.

    Args:
        path: of the PNG, or a file to write it into.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError('a picture needs matplotlib: pip install "explainfix_ext[demo]"') from None
    layers = [(name, cost, report.after[name]) for name, cost in report.before.items() if cost.spatial]
    figure = Figure(figsize=(11, 1.5 + _INCHES_PER_LAYER * len(layers)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    filters = [(before.filters, before.nonzero, after.nonzero) for _, before, after in layers]
    channels = [(before.out_channels, before.out_channels, after.out_channels) for _, before, after in layers]
    for axes, counts, what in ((left, filters, "filters"), (right, channels, "output channels")):
        places = range(len(counts))
        axes.barh(places, [100 * before / of for of, before, _ in counts], color="0.85", label="before")
        axes.barh(places, [100 * after / of for of, _, after in counts], color="C0", label="kept")
        for place, (of, _, after) in enumerate(counts):
            axes.text(101, place, f"{after:,} of {of:,}", fontsize=7, va="center")
        axes.set(xlim=(0, 132), xticks=range(0, 101, 20), xlabel=f"% of the {what}")
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(layers)), [name for name, _, _ in layers], fontsize=7)
    left.set(ylim=(len(layers) - 0.4, -0.6))  # the first layer at the top, no empty rows
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=8)
    figure.suptitle(f"{report.pruned_filters:.1%} of the spatial filters pruned by {report.criterion}")
    figure.savefig(path, format="png")
