"""Observer is told what a training run does. `Trainer` calls it; the commands override it with a progress bar."""

from __future__ import annotations

from typing import Any

from .config import TrainConfig


class Observer:
    """Receives the events of a run, on rank 0 only. This one ignores them all; override what you want to see."""

    def stage(self, name: str, steps: int) -> None:
        """Is called when work other than training begins, such as scoring filters.

        `steps` calls of `step` follow; of a stage of one step, the end is the beginning of what comes next.
        """

    def start(self, config: TrainConfig, steps: int, epoch: int) -> None:
        """Is called when training begins: `steps` steps per epoch, and `epoch` epochs were done before (--resume)."""

    def step(self) -> None:
        """Is called after each step, of training or of a stage."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Is called after each epoch, when its checkpoint is on the disk; `record` is its line of log.jsonl."""
