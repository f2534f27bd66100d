"""Draws the picture of a benchmark: how many times faster ours is, case by case. bench/gpu_report.py calls it, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from explainfix_ext._support.pictures import new_figure, save_figure

Row = dict[str, Any]

_OVER = {"layer": "torch in its faster layout", "model": "the learned network"}


def plot_ratios(report: Row, path: Path) -> None:
    """Draws bars of the speed-up over torch (layers) or the learned network (models), on a log scale around 1.

    Args:
        report: what `as_json` returns, with at least one row.
        path: the image file to write.

    Raises:
        ValueError: matplotlib is not installed.
    """
    rows = [row for row in report["rows"] if row.get("mode") != "learned"]
    threads = sorted({row.get("threads") for row in rows})  # None: a GPU's rows
    cases = {kind: list(dict.fromkeys(row["case"] for row in rows if row["kind"] == kind)) for kind in _OVER}
    kinds = [kind for kind in _OVER if cases[kind]]
    heights = [1 + 0.3 * len(cases[kind]) for kind in kinds]
    figure = new_figure(3 + 5 * len(threads), 1 + sum(heights))
    grid = figure.subplots(
        len(kinds), len(threads), squeeze=False, sharex="row", sharey="row", gridspec_kw={"height_ratios": heights}
    )
    for kind, line in zip(kinds, grid, strict=True):
        for count, axes in zip(threads, line, strict=True):
            _panel(axes, [row for row in rows if (row["kind"], row.get("threads")) == (kind, count)], cases[kind])
            title = f"{kind}s" if count is None else f"{kind}s, threads: {count}"
            axes.set(title=title, xlabel=f"times faster than {_OVER[kind]}")
    figure.suptitle(f"{report['hardware']}, {report['isa']}, torch {report['torch']}, {report['date'][:10]}")
    save_figure(figure, path)


def _panel(axes: Any, rows: Sequence[Row], cases: Sequence[str]) -> None:
    """Draws a group of bars for each case: its directions, or its modes. Whiskers are the quartiles of the rounds."""
    series = list(dict.fromkeys(row.get("mode", row["task"]) for row in rows))
    width = 0.8 / len(series)
    for i, name in enumerate(series):
        those = [row for row in rows if row.get("mode", row["task"]) == name]
        at = [cases.index(row["case"]) + (i - (len(series) - 1) / 2) * width for row in those]
        values = [row["ratio"]["median"] for row in those]
        # Quartiles of the rounds' ratios need not enclose the ratio of the medians.
        low = [max(row["ratio"]["median"] - row["ratio"]["quartiles"][0], 0) for row in those]
        high = [max(row["ratio"]["quartiles"][1] - row["ratio"]["median"], 0) for row in those]
        axes.barh(at, [value - 1 for value in values], width, left=1, xerr=(low, high), label=name,
                  error_kw={"elinewidth": 0.7})  # fmt: skip
    axes.set_yticks(range(len(cases)), cases)
    axes.set(ylim=(len(cases) - 0.5, -0.5))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
