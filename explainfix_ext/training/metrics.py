"""Defines the loss and the metrics for each kind of task. `Trainer` computes them, tables and pictures name them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from explainfix_ext.training.sources.readers import Task

# The one metric that tables and curves show.
PRIMARY: dict[Task, str] = {
    "multiclass": "accuracy",
    "binary": "auroc",
    "multilabel": "auroc",
    "segmentation": "dice",
}
NAMES = {"accuracy": "accuracy", "auroc": "AUROC", "dice": "Dice", "loss": "loss"}  # as shown to users


def loss_for(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the loss of a task, a function (logits, targets as `Dataset` has them) -> mean loss, a scalar.

    Multiclass: cross-entropy. Binary: binary cross-entropy. Multilabel: binary cross-entropy over the known targets,
    those that are not NaN. Segmentation: binary cross-entropy + soft Dice loss.
    """
    losses: dict[Task, Callable[[Tensor, Tensor], Tensor]] = {
        "multiclass": F.cross_entropy,
        "binary": F.binary_cross_entropy_with_logits,
        "multilabel": _known_bce,
        "segmentation": _bce_and_dice,
    }
    return losses[task]


def _known_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns binary cross-entropy over the targets that are not NaN, 0 if there are none; both are (N, classes)."""
    known = (~targets.isnan()).to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), weight=known, reduction="sum")
    return total / known.sum().clamp(min=1)


def known(targets: Tensor) -> int:
    """Counts the targets that are not NaN, which is how much a batch's mean loss weighs in an epoch's."""
    return int((~targets.isnan()).sum())


def _bce_and_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns binary cross-entropy + soft Dice loss; both are (N, 1, H, W).

    Dice is over the whole batch: taken per image, nearly empty images would weigh too much.
    """
    share = logits.sigmoid()
    dice = (2 * (share * masks).sum() + 1) / (share.sum() + masks.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + 1 - dice


def metrics_for(task: Task, classes: int, labels: Sequence[str] = ()) -> Any:
    """Returns the metrics of a task as a torchmetrics.MetricCollection; `add_batch` updates it, `compute` reads it.

    Multiclass: accuracy. Binary: auroc, accuracy. Multilabel: auroc and accuracy, averaged over labels, and auroc/LABEL
    if the labels have names. Segmentation: dice, over all pixels of all images. Values cover all DDP ranks.

    Raises:
        ValueError: torchmetrics is not installed.
    """
    try:
        import torchmetrics.classification as tm
        from torchmetrics import MetricCollection
    except ImportError:
        raise ValueError('training needs torchmetrics: pip install "explainfix_ext[demo]"') from None
    if task == "multiclass":
        return MetricCollection({"accuracy": tm.MulticlassAccuracy(classes, average="micro")})
    if task == "segmentation":
        return MetricCollection({"dice": tm.BinaryF1Score()})  # 2 TP / (2 TP + FP + FN) is both
    if task == "binary":
        return MetricCollection({"auroc": tm.BinaryAUROC(), "accuracy": tm.BinaryAccuracy()})
    from .task_auroc import UNKNOWN, TaskAUROC

    accuracy = tm.MultilabelAccuracy(classes, ignore_index=UNKNOWN)
    return MetricCollection({"auroc": TaskAUROC(labels), "accuracy": accuracy})


def add_batch(metrics: Any, logits: Tensor, targets: Tensor) -> None:
    """Updates a collection with logits and targets as `Dataset` has them."""
    if targets.is_floating_point():
        from .task_auroc import UNKNOWN

        # The sigmoid is ours: torchmetrics would take logits that all happen to be in [0, 1] for probabilities.
        logits, targets = logits.sigmoid(), targets.nan_to_num(UNKNOWN)
    metrics.update(logits, targets.long())


def shown(score: float | None) -> str:
    """Formats a score for users; an undefined one is NaN or, read from JSON, None.

    Examples:
        >>> shown(0.5), shown(float("nan"))
        ('0.5000', 'undefined')
    """
    return "undefined" if score is None or math.isnan(score) else f"{score:.4f}"


def compute(metrics: Any) -> dict[str, float]:
    """Returns the values of a collection as numbers, by name."""
    return {name: float(value) for name, value in metrics.compute().items()}
