"""Progress and tables of `explainfix`: on a terminal, or as plain lines in a file."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .config import TrainConfig
from .train import Observer


def console(stderr: bool = False) -> Console:
    """A terminal as wide as it is; a file wide enough for every table."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=120)


class ProgressBar(Observer):
    """On stderr: a bar over all steps of a run, and above it one line per epoch. A context manager."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps, left:"))
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console(stderr=True))

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress.tasks:
            self.progress.stop()

    def start(self, config: TrainConfig, steps: int, epoch: int) -> None:
        self.progress.start()  # only now: bad input found before leaves one line, not a bar
        self.label, self.epochs = config.label, config.epochs
        self.task = self.progress.add_task(self.label, total=steps * config.epochs, completed=steps * epoch)

    def step(self) -> None:
        self.progress.advance(self.task)

    def epoch(self, record: dict[str, Any]) -> None:
        scores = "  ".join(f"{key[4:]} {value:.4f}" for key, value in record.items() if key.startswith("val_"))
        line = f"{self.label}  epoch {record['epoch']}/{self.epochs}  train loss {record['train_loss']:.4f}"
        self.progress.console.print(f"{line}  validation {scores}  {record['train_seconds']:.1f} s", markup=False)


def results_table(results: dict[str, Any]) -> Table:
    """One row per network: what `train_networks` returns, for people."""
    config, metric = results["runs"][0]["config"], results["metric"]
    table = Table(title=f"{config['model']} on {results['data']['name']}, {config['epochs']} epochs, test images")
    table.add_column("network")
    names = {"accuracy": "accuracy", "auroc": "AUROC", "dice": "Dice"}
    numbers = (names[metric], "time per step", "learned parameters", "checkpoint", "kept for backward", "peak")
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
