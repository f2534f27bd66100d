"""What is minimised and what is reported for each kind of task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from explainfix_ext.training.sources.readers import Task

# The metric that tables and curves show.
PRIMARY: dict[Task, str] = {
    "multiclass": "accuracy",
    "binary": "auroc",
    "multilabel": "auroc",
    "segmentation": "dice",
}
NAMES = {"accuracy": "accuracy", "auroc": "AUROC", "dice": "Dice", "loss": "loss"}  # for people


def loss_for(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits, targets as `Dataset` has them) -> the mean loss, a scalar.

    Multiclass: cross-entropy. Binary: binary cross-entropy. Multilabel: the same over the known targets, those that are
    not NaN. Segmentation: binary cross-entropy + soft Dice loss.
    """
    losses: dict[Task, Callable[[Tensor, Tensor], Tensor]] = {
        "multiclass": F.cross_entropy,
        "binary": F.binary_cross_entropy_with_logits,
        "multilabel": _known_bce,
        "segmentation": _bce_and_dice,
    }
    return losses[task]


def _known_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """(N, classes) twice. 0 where nothing is known."""
    known = (~targets.isnan()).to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), weight=known, reduction="sum")
    return total / known.sum().clamp(min=1)


def known(targets: Tensor) -> int:
    """How many targets are not NaN: the weight of their mean loss."""
    return int((~targets.isnan()).sum())


def _bce_and_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """(N, 1, H, W) twice. Dice over the whole batch: one over each image would make much of nearly empty ones."""
    share = logits.sigmoid()
    dice = (2 * (share * masks).sum() + 1) / (share.sum() + masks.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + 1 - dice


def metrics_for(task: Task, classes: int, labels: Sequence[str] = ()) -> Any:
    """A torchmetrics.MetricCollection, for `add_batch`; `compute` covers all DDP ranks.

    Multiclass: accuracy. Binary: auroc, accuracy. Multilabel: the same, averaged over labels, and auroc/LABEL of those
    that have names. Segmentation: dice, over all pixels of all images.
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
    """Update a collection with logits and targets as `Dataset` has them."""
    if targets.is_floating_point():
        from .task_auroc import UNKNOWN

        # By themselves, torchmetrics take a batch whose logits all happen to be in [0, 1] for probabilities.
        logits, targets = logits.sigmoid(), targets.nan_to_num(UNKNOWN)
    metrics.update(logits, targets.long())


def shown(score: float | None) -> str:
    """A score for people; NaN, or None of JSON, is one that is not defined.

    Example:
        >>> shown(0.5), shown(float("nan"))
        ('0.5000', 'undefined')
    """
    return "undefined" if score is None or math.isnan(score) else f"{score:.4f}"


def compute(metrics: Any) -> dict[str, float]:
    """The values of a collection, as numbers."""
    return {name: float(value) for name, value in metrics.compute().items()}
