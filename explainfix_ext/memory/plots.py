"""The picture of a memory report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import MemoryReport


def plot_memory(report: MemoryReport, path: Path) -> None:
    """Left, what is alive after each operation of a step; right, what is kept by each kind of layer.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError('a picture needs matplotlib: pip install "explainfix_ext[demo]"') from None
    figure = Figure(figsize=(11, 4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for usage, name in ((report.frozen, "frozen torch"), (report.ours, "ours")):
        before, after = usage.timeline[: usage.forward], usage.timeline[usage.forward :]
        # Each pass is one unit wide, or the curves of different programs could not be compared.
        at = [i / max(len(before), 1) for i in range(len(before))]
        at += [1 + i / max(len(after), 1) for i in range(len(after))]
        label = f"{name}: peak {usage.peak / 2**20:.0f} MiB"
        left.fill_between(at, [size / 2**20 for size in usage.timeline], alpha=0.5, label=label)
    left.axvline(1, color="black", linewidth=0.8)
    left.set(xlabel="forward | backward", ylabel="MiB alive", xlim=(0, 2), ylim=(0, None))
    left.set_xticks([])
    left.legend()
    ours, frozen = report.by(lambda name, kind: kind)
    kinds = sorted({*ours, *frozen}, key=lambda kind: -frozen[kind] - ours[kind])[:12]
    places = range(len(kinds))
    right.barh([i - 0.2 for i in places], [frozen[kind] / 2**20 for kind in kinds], 0.4, label="frozen torch")
    right.barh([i + 0.2 for i in places], [ours[kind] / 2**20 for kind in kinds], 0.4, label="ours")
    right.set_yticks(places, kinds)
    right.invert_yaxis()
    right.set(xlabel="MiB kept for the backward pass")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path)
