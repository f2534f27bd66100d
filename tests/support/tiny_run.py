"""A tiny network on tiny images: a training run of a second, for tests of commands and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.runs import train_networks

CPU = torch.device("cpu")


class Tiny(nn.Sequential):
    """Spatial filters, and 1x1s between them, as a bottleneck has."""

    def __init__(self, in_channels: int, num_classes: int, scale: float) -> None:
        width, layers = round(12 * scale), []
        for channels in (in_channels, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes))


def images(path: Path, classes: int = 3) -> str:
    """A small data set in MedMNIST's layout: a class is the period of stripes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in (("train", 90), ("val", 20), ("test", 30)):
        label = np.arange(n) % classes
        wave = np.sin(np.arange(12) * np.pi / (1 + label[:, None]))[:, None, :]
        arrays[f"{name}_images"] = (128 + 60 * wave + rng.normal(0, 30, (n, 12, 12))).clip(0, 255).astype(np.uint8)
        arrays[f"{name}_labels"] = label[:, None]
    np.savez(path, **arrays)
    return str(path)


def train(folder: Path, classes: int = 3, **options: Any) -> Path:
    """The checkpoint of a tiny network, trained for a few steps."""
    folder.mkdir(parents=True, exist_ok=True)
    data = images(folder / "images.npz", classes)
    config = TrainConfig(model="tiny", data=data, **({"epochs": 2, "batch_size": 15, "lr": 0.01} | options))
    train_networks([config], folder / "trained", device="cpu")
    return folder / "trained" / config.label / "checkpoint.pt"
