"""Computes what a network says of some test images. `run` calls it, `prediction_section` shows it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from explainfix_ext._support.models import eval_mode
from explainfix_ext.training.trainer import Trainer

DRAWN = 12  # images whose classes are shown; of masks, half as many


@dataclass(frozen=True)
class Predictions:
    """Holds what a network says of some test images.

    Attributes:
        images: (N, C, H, W), from 0 to 1; or signals (N, C, L).
        shares: probabilities (N, classes), or of masks (N, H, W).
        targets: 1, 0 or, of a label that is not known, NaN; shaped as `shares`.
        labels: names of the classes.
    """

    images: Tensor
    shares: Tensor
    targets: Tensor
    labels: tuple[str, ...]


@torch.no_grad()
def find_predictions(trainer: Trainer, chosen: TensorDataset) -> Predictions:
    """Runs the network on the chosen images of `trainer.data`."""
    data = trainer.data
    images, targets = chosen.tensors
    with eval_mode(trainer.network):
        logits = trainer.forward(trainer.network, images).cpu()
    labels = data.labels or tuple(map(str, range(data.outputs)))
    if data.task == "multiclass":
        shares, targets = logits.softmax(1), F.one_hot(targets, data.classes).float()
    else:
        shares = logits.sigmoid()
        labels = ("class 1",) if data.task == "binary" else labels
    if data.task == "segmentation":
        shares, targets = shares[:, 0], targets[:, 0]
    mean, std = (torch.tensor(values).reshape(-1, *[1] * (images.ndim - 2)) for values in (data.mean, data.std))
    images = images * std + mean
    return Predictions(images.clamp(0, 1) if images.ndim == 4 else images, shares, targets, labels)
