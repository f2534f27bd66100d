"""What a training run tells whoever watches it."""

from __future__ import annotations

from typing import Any

from .config import TrainConfig


class Observer:
    """Told what happens, on rank 0; does nothing. The command line's shows a progress bar."""

    def stage(self, name: str, steps: int) -> None:
        """Something else than training begins, of `steps` steps."""

    def start(self, config: TrainConfig, steps: int, epoch: int) -> None:
        """A run of `steps` steps per epoch begins, `epoch` epochs being done."""

    def step(self) -> None: ...

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is done and its checkpoint on the disk; `record` is its line of the log."""
