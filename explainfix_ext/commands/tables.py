"""Prints progress and tables for the commands, on a terminal or as plain lines in a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from explainfix_ext.prune.report import layers_by_reason
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.metrics import NAMES, shown
from explainfix_ext.training.observer import Observer


def console(stderr: bool = False) -> Console:
    """Returns the console to print on. In a file it is 120 columns wide, enough for every table."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=120)


class ProgressBar(Observer):
    """Shows on stderr a bar over all steps of a run, and above it one line per epoch. Use it as a context manager."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps, left:"))
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console(stderr=True))

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress.tasks:
            self.progress.stop()

    def stage(self, name: str, steps: int) -> None:
        self.progress.start()
        self.task = self.progress.add_task(name, total=steps)

    def start(self, config: TrainConfig, steps: int, epoch: int) -> None:
        self.progress.start()  # not earlier: bad input that is found before shall print one line, and no bar
        self.label, self.epochs = config.label, config.epochs
        self.task = self.progress.add_task(self.label, total=steps * config.epochs, completed=steps * epoch)

    def step(self) -> None:
        self.progress.advance(self.task)

    def epoch(self, record: dict[str, Any]) -> None:
        scores = "  ".join(f"{key[4:]} {value:.4f}" for key, value in record.items() if _is_short(key))
        line = f"{self.label}  epoch {record['epoch']}/{self.epochs}  train loss {record['train_loss']:.4f}"
        self.progress.console.print(f"{line}  validation {scores}  {record['train_seconds']:.1f} s", markup=False)


def _is_short(key: str) -> bool:
    """Says whether a key of a record is a validation score over all tasks, not of a single one."""
    return key.startswith("val_") and "/" not in key


def task_table(results: dict[str, Any]) -> Table | None:
    """Returns AUROC on the test images, a row per task and a column per network; None if tasks have no names."""
    tasks = results["data"]["labels"]
    if not tasks:
        return None
    table = Table(title=f"{NAMES['auroc']}, test images")
    table.add_column("task")
    for run in results["runs"]:
        table.add_column(run["network"], justify="right")
    for task in tasks:
        scores = [run["test"].get(f"auroc/{task}") for run in results["runs"]]
        table.add_row(task, *("one class only" if score is None else f"{score:.4f}" for score in scores))
    return table


def results_table(results: dict[str, Any]) -> Table:
    """Returns what `train_networks` returned as a table, one row per network."""
    config, metric = results["runs"][0]["config"], results["metric"]
    table = Table(title=f"{config['model']} on {results['data']['name']}, {config['epochs']} epochs, test images")
    table.add_column("network")
    numbers = (NAMES[metric], "time per step", "learned parameters", "checkpoint", "kept for backward", "peak")
    for name in numbers:
        table.add_column(name, justify="right")
    for run in results["runs"]:
        table.add_row(
            run["network"],
            f"{run['test'][metric]:.4f}",
            f"{1e3 * run['step_seconds']:.1f} ms",
            f"{run['learned_parameters']:,}",
            f"{run['checkpoint_bytes'] / 2**20:.2f} MiB",
            f"{run['kept_bytes'] / 2**20:.1f} MiB",
            f"{run['peak_bytes'] / 2**20:.1f} MiB",
        )
    return table


def pruning_table(report: dict[str, Any]) -> Table:
    """Returns what `PruneReport.as_dict` returned as a table, one row per layer, and their sum."""
    table = Table(title="before -> after pruning, one image")
    table.add_column("layer", overflow="fold")
    for name in ("channels, in x out", "nonzero filters", "parameters", "multiply-adds"):
        table.add_column(name, justify="right")
    for name, sides in report["layers"].items():
        costs = (sides["before"], sides["after"])
        table.add_row(
            name,
            _pair(*(f"{cost['in_channels']}x{cost['out_channels']}" for cost in costs)),
            _pair(*(f"{cost['nonzero']:,}" for cost in costs)),
            _pair(*(f"{cost['parameters']:,}" for cost in costs)),
            _pair(*(_short(cost["multiply_adds"]) for cost in costs)),
        )
    table.add_section()
    stored, work = _pair(*(f"{n:,}" for n in report["parameters"])), _pair(*map(_short, report["multiply_adds"]))
    table.add_row("the network", "", "", stored, work)
    return table


def pruning_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields sentences: what was pruned, how exactly it was verified, and what had to stay."""
    yield f"{report['pruned_filters']:.1%} of the spatial filters pruned by {report['criterion']}"
    error = report["verify_error"]
    if error is None:
        yield "no channel was removed: the pruned network is the masked one"
    else:
        yield f"verified: equals the masked model to {f'{error:.0e}' if error else 'the last bit'}"
    for reason, names in layers_by_reason(report["protected"]).items():
        yield f"some channels stay ({reason}): {', '.join(names)}"


def stages_table(results: dict[str, Any]) -> Table:
    """Returns the test scores in what `prune_checkpoint` returned: unpruned, pruned and fine-tuned."""
    config, metric = results["config"], results["metric"]
    table = Table(title=f"{config['model']} on {results['data']['name']}, test images")
    table.add_column("network")
    for name in (NAMES[metric], "loss", "learned parameters"):
        table.add_column(name, justify="right")
    before, after = results["learned_parameters"]
    epochs = results["prune"]["epochs"]
    tuned = f"fine-tuned, {epochs} epoch{'s' * (epochs > 1)}"
    for key, name, learned in (
        ("unpruned", "unpruned", before),
        ("pruned", "pruned", after),
        ("fine_tuned", tuned, after),
    ):
        if (scores := results["test"][key]) is not None:
            table.add_row(name, f"{scores[metric]:.4f}", f"{scores['loss']:.4f}", f"{learned:,}")
    return table


def amounts_table(results: dict[str, Any]) -> Table:
    """Returns the pruning in what `Explained.as_dict` returned as a table, one row per amount."""
    metric, test = results["metric"], results["test"]
    table = Table(title="what pruning would leave, without fine-tuning")
    for name in (
        "filters pruned",
        "parameters",
        "multiply-adds",
        "verification error",
        *([f"test {NAMES[metric]}"] if test else []),
    ):
        table.add_column(name, justify="right")
    for pruned in results["pruning"]["amounts"]:
        if pruned["reason"]:
            table.add_row(f"{pruned['amount']:.0%}", pruned["reason"])
            continue
        error = pruned["verify_error"]
        table.add_row(
            f"{pruned['amount']:.0%}",
            _pair(*(f"{n:,}" for n in pruned["parameters"])),
            _pair(*map(_short, pruned["multiply_adds"])),
            "-" if error is None else f"{error:.0e}",
            *([f"{shown(test[metric])} -> {shown(pruned['test'][metric])}"] if test else []),
        )
    return table


def _short(n: int) -> str:
    return f"{n / 1e6:,.2f} M" if n >= 1e5 else f"{n / 1e3:.1f} k"


def _pair(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"
