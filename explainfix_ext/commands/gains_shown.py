"""Shows what `gains.compare` measured: a table, sentences and a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from explainfix_ext._support.pictures import new_figure, save_figure

# What costs, so that less is better: its key, and how many of its unit are one of the unit shown.
COSTS = {
    "training step, ms": ("step_seconds", 1e3),
    "step's memory, MiB": ("peak_bytes", 2**-20),
    "parameters, 1000s": ("learned_parameters", 1e-3),
    "model file, MiB": ("checkpoint_bytes", 2**-20),
    "one image, ms": ("latency_seconds", 1e3),
}
LEARNED, FIXED, RECOMPUTE, PRUNED = "learned", "fixed", "fixed, recompute", "fixed, pruned"
NO_GAIN = 0.95  # of the learned network's cost; timings of one machine differ by less


def gains_rows(results: dict[str, Any]) -> list[list[str]]:
    """Returns a head and rows: a column for each network; in brackets is its share of the learned one's cost."""
    networks = results["networks"]
    rows = [["", *networks], ["test accuracy, %", *(_accuracy(run) for run in networks.values())]]
    for label, (key, unit) in COSTS.items():
        first, *others = (unit * run[key] for run in networks.values())
        rows.append([label, _short(first), *(f"{_short(cost)} ({cost / first:.2f})" for cost in others)])
    return rows


def gains_table(results: dict[str, Any]) -> Table:
    """Returns `gains_rows` as a table that fits 80 columns."""
    head, *rows = gains_rows(results)
    table = Table(title=_title(results), box=SIMPLE, pad_edge=False, collapse_padding=True)
    for name in head:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*row)
    return table


def gains_lines(results: dict[str, Any]) -> Iterator[str]:
    """Yields sentences: how to read the table, and which of its figures are no gain."""
    config, prune = results["config"], results["prune"]
    yield (
        f"fixed: --init {config['init']}{' --pointwise' * config['pointwise']}. pruned: {prune['amount']:.0%} of the "
        f"spatial filters, by {prune['granularity']}, then {prune['epochs']} more epoch{'s' * (prune['epochs'] != 1)} "
        f"than the others. (share of learned); ± standard error."
    )
    yield "parameters: those that are learned. memory: activations and gradients at the peak, counted."
    learned = next(iter(results["networks"].values()))
    others = dict([*results["networks"].items()][1:])
    for label, (key, _) in COSTS.items():
        if names := [name for name, run in others.items() if run[key] > NO_GAIN * learned[key]]:
            yield f"no gain in {label.partition(',')[0]}: {'; '.join(names)}"
    for name, run in others.items():
        if (lost := learned["accuracy"] - run["accuracy"]) > run["accuracy_standard_error"]:
            yield f"less accurate than learned, by {100 * lost:.1f} points: {name}"


def plot_gains(results: dict[str, Any], path: Path) -> None:
    """Draws validation accuracy over epochs, and bars for time, memory and size, into an image file.

    Args:
        results: what `gains.compare` returns.
        path: the file to write; a former one is replaced.

    Raises:
        ValueError: matplotlib is not installed.
    """
    networks = results["networks"]
    figure = new_figure(12, 5)
    parts: Any = figure.subfigures(1, 2, width_ratios=(2, 3))
    left, right = parts
    _plot_curves(left.subplots(), networks, results["config"]["epochs"])
    shown = [item for item in COSTS.items() if item[0] != "model file, MiB"]  # as the parameters
    for axes, (label, (key, unit)) in zip(right.subplots(2, 2).flat, shown, strict=True):
        _plot_bars(axes, label, {name: unit * run[key] for name, run in networks.items()})
    figure.suptitle(_title(results))
    save_figure(figure, path)


def _title(results: dict[str, Any]) -> str:
    config, data = results["config"], results["data"]
    epochs = f"{config['epochs']} epoch{'s' * (config['epochs'] > 1)}"
    return f"{config['model']} on {config['limit'] or data['train']:,} images of {data['name']}, {epochs}"


def _accuracy(run: dict[str, Any]) -> str:
    return f"{100 * run['accuracy']:.1f} ± {100 * run['accuracy_standard_error']:.1f}"


def _short(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.3g}"


def _plot_curves(axes: Any, networks: dict[str, Any], trained: int) -> None:
    for i, (name, run) in enumerate(networks.items()):
        tuned = name == PRUNED  # goes on from the fixed one's last epoch
        epochs = [record["epoch"] + trained * tuned for record in run["history"]]
        accuracy = [100 * record["val_accuracy"] for record in run["history"]]
        style = {"color": f"C{i}", "alpha": 0.8, "markersize": 4, "label": f"{name}: {_accuracy(run)}"}
        axes.plot(epochs, accuracy, "o:" if tuned else "o-", **style)
    axes.set(xlabel="epoch (dotted: fine-tuning)", title="validation accuracy, % (legend: on test images)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)


def _plot_bars(axes: Any, label: str, costs: dict[str, float]) -> None:
    names, values = [*costs], [*costs.values()]
    bars = axes.barh(names, values, color=[f"C{i}" for i in range(len(values))])
    words = [_short(value) + (f"  ({value / values[0]:.2f})" if i else "") for i, value in enumerate(values)]
    axes.bar_label(bars, words, padding=3, fontsize=8)
    axes.set_title(label, fontsize=10)
    axes.set_xlim(0, 1.5 * max(values))
    axes.invert_yaxis()
