"""Shows on stderr how far a command is: bars with the time left on a terminal, a line a stage and epoch in a file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from explainfix_ext._support.progress import watched_by
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.observer import Observer

Item = TypeVar("Item")
_SPEED_OVER = 300  # seconds: a step of `bench` takes up to half a minute


def console(stderr: bool = False) -> Console:
    """Returns the console to print on. In a file it is 120 columns wide, enough for every table."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=120)


@contextlib.contextmanager
def working(as_json: bool, interrupted: str) -> Iterator[ProgressBar]:
    """Shows the progress of the work in its block; what libraries print goes to stderr, stdout is for results.

    Args:
        as_json: a stderr that is no terminal stays empty.
        interrupted: says after Ctrl-C what there is and how to go on.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), ProgressBar(as_json) as bar, watched_by(bar.track):
            yield bar
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        raise typer.Exit(130) from None


class ProgressBar(Observer):
    """Shows a bar for each network that is trained, one for the stage that runs, and a line for each epoch."""

    def __init__(self, as_json: bool) -> None:
        out = console(stderr=True)
        name = TextColumn("{task.description}", table_column=Column(max_width=36, no_wrap=True, overflow="ellipsis"))
        columns = (name, BarColumn(24), _Left())
        self.progress = Progress(*columns, console=out, disable=not out.is_terminal, speed_estimate_period=_SPEED_OVER)
        self.lines = out.is_terminal or not as_json
        self.task: TaskID | None = None
        self.in_stage = self.read = False

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_stage()
        if self.progress.live.is_started:
            self.progress.stop()

    def stage(self, name: str, steps: int) -> None:
        """Shows a new bar, which is gone when the next one is shown; one step alone has no time to tell."""
        self._begin(name, None if steps == 1 else steps)
        self.in_stage = True
        if self.lines and self.read and not self.progress.console.is_terminal:
            self.progress.console.print(name, markup=False)  # a file has no bars, and a stage may take minutes
        self.read = True  # the first stage reads the input: what is wrong with it is told in one line, alone

    def start(self, config: TrainConfig, steps: int, epoch: int) -> None:
        self.label, self.epochs = config.label, config.epochs
        self._begin(self.label, steps * config.epochs, steps * epoch)

    def step(self) -> None:
        if self.task is not None:
            self.progress.advance(self.task)

    def epoch(self, record: dict[str, Any]) -> None:
        if not self.lines:
            return
        scores = "  ".join(f"{key[4:]} {value:.4f}" for key, value in record.items() if _is_short(key))
        line = f"{self.label}  epoch {record['epoch']}/{self.epochs}  loss {record['train_loss']:.4f}"
        self.progress.console.print(f"{line}  val {scores}  {record['train_seconds']:.1f} s", markup=False)

    def rename(self, name: str) -> None:
        """Names what the stage is at."""
        if self.task is not None:
            self.progress.update(self.task, description=name)

    def track(self, items: Sequence[Item], name: str) -> Iterator[Item]:
        """Yields the items, with a bar of their own over them."""
        self.progress.start()
        task = self.progress.add_task(name, total=len(items))
        for item in items:
            yield item
            self.progress.advance(task)
        self.progress.remove_task(task)

    def _begin(self, name: str, steps: int | None, done: int = 0) -> None:
        """Begins a bar. Nothing is drawn before: bad input that is found early shall print one line, and no bar."""
        self._end_stage()
        self.progress.start()
        self.task = self.progress.add_task(name, total=steps, completed=done)

    def _end_stage(self) -> None:
        if self.in_stage and self.task is not None:
            self.progress.remove_task(self.task)
        self.in_stage, self.task = False, None


class _Left(ProgressColumn):
    """Says how many steps are done and how long the others will take; of a single step, how long it takes already."""

    def render(self, task: Task) -> Text:
        done = f"{task.completed:.0f}/{task.total:.0f}, " if task.total is not None else ""
        if task.finished:
            return Text(f"{done}took {_clock(task.finished_time)}")
        if task.total is None:
            return Text(_clock(task.elapsed))
        return Text(f"{done}{_clock(task.time_remaining)} left")


def _clock(seconds: float | None) -> str:
    return "-:--" if seconds is None else f"{seconds // 60:.0f}:{seconds % 60:02.0f}"


def _is_short(key: str) -> bool:
    """Says whether a key of a record is a validation score over all tasks, not of a single one."""
    return key.startswith("val_") and "/" not in key
