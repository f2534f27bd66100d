"""Draws the pictures of a memory report and of a plan, for `MemoryReport.plot` and `MemoryPlan.plot`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from explainfix_ext._support.pictures import new_figure

from .count import MIB, Usage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS_SHOWN = 12


def plot_memory(ours: Usage, frozen: Usage, kinds: tuple[Counter[str], Counter[str]]) -> Figure:
    """Draws, on the left, what is alive after each operation of a step; on the right, what each kind of layer keeps.

    Args:
        ours: bytes of the model as it is.
        frozen: bytes of the same model with plain frozen convolutions.
        kinds: bytes kept for the backward pass by kind of layer, in `ours` and in `frozen`.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_timelines(left, {"frozen torch": frozen, "ours": ours})
    _draw_kinds(right, *kinds)
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def _draw_timelines(axes: Axes, usages: dict[str, Usage]) -> None:
    """Draws the MiB alive over a step. Networks run different numbers of operations, so each pass is one unit wide."""
    for name, usage in usages.items():
        forward, backward = usage.forward, len(usage.timeline) - usage.forward
        at = [i / max(forward, 1) for i in range(forward)] + [1 + i / max(backward, 1) for i in range(backward)]
        label = f"{name}: peak {usage.peak / MIB:.0f} MiB"
        axes.fill_between(at, [size / MIB for size in usage.timeline], alpha=0.5, label=label)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel="forward | backward", ylabel="MiB alive", xlim=(0, 2), ylim=(0, None))
    axes.set_xticks([])


def _draw_kinds(axes: Axes, ours: Counter[str], frozen: Counter[str]) -> None:
    """Draws a pair of bars for each kind of layer, the largest first."""
    names = sorted({*ours, *frozen}, key=lambda kind: -frozen[kind] - ours[kind])[:_KINDS_SHOWN]
    places = range(len(names))
    axes.barh([i - 0.2 for i in places], [frozen[kind] / MIB for kind in names], 0.4, label="frozen torch")
    axes.barh([i + 0.2 for i in places], [ours[kind] / MIB for kind in names], 0.4, label="ours")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(xlabel="MiB kept for the backward pass")


def plot_plan(rows: dict[str, tuple[int, int]], fixed: dict[str, int], budget: int, batch: int) -> Figure:
    """Draws a bar for each configuration, of what it takes by what it is for, and the budget as a line.

    Args:
        rows: by configuration: bytes of activations and gradients at the peak, and the total.
        fixed: bytes that each configuration takes, by what they are for.
        budget: in bytes.
        batch: images of a step.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure = new_figure(7, 1.2 + 0.45 * len(rows))
    axes = figure.subplots()
    parts = {name: [size] * len(rows) for name, size in fixed.items()}
    parts["images"] = [total - peak - sum(fixed.values()) for peak, total in rows.values()]
    parts["activations and gradients"] = [peak for peak, _ in rows.values()]
    left = [0.0] * len(rows)
    for name, sizes in parts.items():
        mib = [size / MIB for size in sizes]
        axes.barh(range(len(rows)), mib, 0.6, left, label=name)
        left = [a + b for a, b in zip(left, mib, strict=True)]
    axes.axvline(budget / MIB, color="black", linestyle="--", label="budget")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlabel=f"MiB at batch {batch}")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure
