"""A network with dropout on small images, for tests of training: stopped and resumed, it must not change a bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from explainfix_ext.training.checkpoint import load_checkpoint
from explainfix_ext.training.observer import Observer

CPU = torch.device("cpu")


class DropoutNet(nn.Sequential):
    """A few fixed or learned filters, learned 1x1s, and dropout, which draws random numbers in training."""

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, num_classes),
        )


def stripes(path: Path, classes: int = 3, width: int = 1) -> str:
    """A data set that a few filters learn: a class is the period of stripes. In MedMNIST's layout."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in (("train", 96), ("val", 31), ("test", 33)):
        label = rng.integers(0, classes, n)
        wave = np.sin(np.arange(12) * np.pi / (1 + label[:, None]))[:, None, :]
        arrays[f"{name}_images"] = (128 + 80 * wave + rng.normal(0, 20, (n, 12, 12))).clip(0, 255).astype(np.uint8)
        arrays[f"{name}_labels"] = label[:, None] if width == 1 else rng.integers(0, 2, (n, width))
    np.savez(path, **arrays)
    return str(path)


class StopAfter(Observer):
    """Ctrl-C in the step after `epochs` epochs. Counts what it sees."""

    def __init__(self, epochs: int = 1000) -> None:
        self.left, self.steps, self.records = epochs, 0, []

    def step(self) -> None:
        self.steps += 1
        if self.left == 0:
            raise KeyboardInterrupt

    def epoch(self, record) -> None:
        self.left -= 1
        self.records.append(record)


def assert_same(a, b, path="state"):
    """Equal to the last bit, all the way down."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{path}[{i}]")
    else:
        assert a == b, path


def assert_same_training(a: Path, b: Path) -> None:
    """Two checkpoints, but for the times in their history."""
    states = [load_checkpoint(path) for path in (a, b)]
    for state in states:
        for record in state["history"]:
            del record["train_seconds"], record["step_seconds"]
    assert_same(*states)


def cli(*arguments: str, **options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "explainfix_ext.cli", *arguments]
    return subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background without this signal, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
