"""A picture for each claim."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import timing
from .accuracy import LABELS, METRIC, swept, usual
from .filters import KINDS, NAMES, STAGES, densities, prune_score, spectra_of
from .jobs import CONTROL, CRITERIA, SWEPT_INITS
from .scores import POINT, Score, in_order, pruned
from .verdicts import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MARKERS = {"explainfix": "o", "random": "x", CONTROL: "^"}


def _figure(columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels


def _reach(scores: Sequence[Score]) -> list[list[float]]:
    """From each mean to the lowest and to the highest seed, in points."""
    return [[abs(end(s.values) - s.mean) / POINT for s in scores] for end in (min, max)]


def _line(axes: Axes, x: Sequence[float], scores: Sequence[Score], style: str, **options: Any) -> None:
    """Means against x; what diverged is left out."""
    good = [(at, s) for at, s in zip(x, scores, strict=True) if s.values and not s.diverged]
    at, there = [at for at, _ in good], [s for _, s in good]
    axes.errorbar(at, [s.mean / POINT for s in there], _reach(there), fmt=style, markersize=4, capsize=2, **options)


def fixed(found: Found) -> Figure:
    """Points over the learned network: a panel for each data set, a dot for each network, seeds' range as a bar."""
    cells = list(usual(found))
    sets = list(dict.fromkeys(data for data, *_ in cells))
    figure, panels = _figure(len(sets), 13.5, 4.4)
    for axes, data in zip(panels, sets, strict=True):
        mine = [(network, scores) for name, network, scores in cells if name == data]
        labels = [label for label in LABELS[1:] if any(label in scores for _, scores in mine)][::-1]
        for i, (network, scores) in enumerate(mine):
            there = [(y, scores[n]) for y, n in enumerate(labels) if n in scores and not scores[n].diverged]
            gaps = [s.minus(scores["learned"]) for _, s in there]
            at = [y + 0.15 * (1 - i) for y, _ in there]
            axes.errorbar(gaps, at, xerr=_reach([s for _, s in there]), fmt="o", markersize=4, capsize=2, label=network)
        axes.axvspan(-1, 1, color="0.9")
        axes.axvline(0, color="0.5", linewidth=1)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xscale("symlog", linthresh=4)
        ticks = (-80, -40, -20, -10, -4, -2, 0, 2, 4, 10)
        axes.set_xticks(ticks, map(str, ticks), fontsize=8)
        axes.set(title=data, xlabel=f"{METRIC[data]}: points over learned (grey: within a point)")
        axes.legend(fontsize=8)
    return figure


def few(found: Found) -> Figure:
    rows = pruned(found)
    amounts = in_order(rows, "amount")
    figure, (left, right) = _figure(2, 10, 5)
    for i, init in enumerate(in_order(rows, "init", SWEPT_INITS)):
        for criterion in in_order(rows, "criterion", CRITERIA):
            for stage, line in zip(STAGES, (":", "-"), strict=True):
                scores = [prune_score(rows, init, criterion, stage, amount) for amount in amounts]
                label, marker = f"{init}, {NAMES[criterion]}, {STAGES[stage]}", MARKERS[criterion]
                _line(left, [1 - a for a in amounts], scores, marker + line, color=f"C{i}", label=label)
    scratch = densities(found)
    _line(right, list(scratch), list(scratch.values()), "o-", color="C1", label="dct2")
    learned = swept(found, "width")[1.0]["learned"]
    for axes, title in ((left, "zeroed after training"), (right, "zero from the start")):
        axes.axhline(learned.mean / POINT, color="0.5", linewidth=1, label="learned, whole")
        axes.set(xscale="log", xlabel="share of the filters that is not zero", ylabel="AUROC (points)", title=title)
        axes.invert_xaxis()
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    return figure


def _sweep(found: Found, key: str, label: str, scale: dict[str, Any]) -> Figure:
    figure, (axes,) = _figure(1, 6.5, 3.6)
    table = swept(found, key)
    for i, init in enumerate(SWEPT_INITS):
        _line(axes, list(table), [scores[init] for scores in table.values()], "o-", color=f"C{i}", label=init)
    axes.set_xscale("log", **scale)
    axes.set_xticks(list(table), [f"{value:g}" for value in table])
    axes.minorticks_off()
    axes.set(xlabel=label, ylabel="AUROC (points)")
    axes.legend(fontsize=8)
    return figure


def rates(found: Found) -> Figure:
    return _sweep(found, "lr", "learning rate", {})


def sizes(found: Found) -> Figure:
    return _sweep(found, "width", "channels, of the usual", {"base": 2})


def frequencies(found: Found) -> Figure:
    """Energy by frequency, mean over layers of 3 x 3 kernels (their five frequencies), networks and seeds."""
    figure, panels = _figure(len(KINDS), 13, 3.8, sharey=True)
    for axes, (kind, title) in zip(panels, KINDS.items(), strict=True):
        for i, ((data, network), jobs) in enumerate(spectra_of(found).items()):
            layers = [layer for job in jobs for layer in job["spectra"].get(kind, {}).values()]
            square = [layer["over_flat"] for layer in layers if layer["kernel"] == [3, 3]]
            if square:
                means = {f: statistics.mean(energies[f] for energies in square) for f in square[0]}
                at, y = [float(f) for f in means], list(means.values())
                axes.plot(at, y, "o-", markersize=3, color=f"C{i}", label=f"{data}, {network}")
        axes.axhline(1, color="0.5", linewidth=1)
        axes.set(title=title, xlabel="frequency (0 constant, 1 highest)")
    panels[0].set_ylabel("energy of a function, over the mean")
    panels[1].legend(fontsize=7)
    return figure


def times(found: Found) -> Figure:
    figure, (axes,) = _figure(1, 10, 3.8)
    width = 0.8 / len(timing.WAYS)
    for i, way in enumerate(timing.WAYS):
        ratios = [row["seconds"][way]["median"] / row["seconds"]["learned"]["median"] for row in found["times"]]
        axes.bar([k + (i + 0.5) * width for k in range(len(ratios))], ratios, width, label=way)
    axes.set_xticks([k + 0.4 for k in range(len(found["times"]))], [row["network"] for row in found["times"]])
    axes.set_ylabel("time of a step over learned")
    axes.axhline(1, color="0.5", linewidth=1)
    figure.legend(fontsize=8, loc="outside right center")
    return figure


DRAW: dict[str, Callable[[Found], Figure]] = {
    "a": fixed,
    "b": few,
    "c": rates,
    "d": sizes,
    "e": frequencies,
    "f": times,
}
