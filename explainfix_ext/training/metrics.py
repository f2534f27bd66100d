"""What is minimised and what is reported for each kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .data_sources import Task

# The metric that tables and curves show.
PRIMARY: dict[Task, str] = {
    "multiclass": "accuracy",
    "binary": "auroc",
    "multilabel": "auroc",
    "segmentation": "dice",
}


def loss_for(task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits, targets as `Dataset` has them) -> the mean loss, a scalar.

    Multiclass: cross-entropy. Binary and multilabel: binary cross-entropy. Segmentation: the same + soft Dice loss.
    """
    if task == "multiclass":
        return F.cross_entropy
    return _bce_and_dice if task == "segmentation" else F.binary_cross_entropy_with_logits


def _bce_and_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """(N, 1, H, W) twice. Dice over the whole batch: one over each image would make much of nearly empty ones."""
    share = logits.sigmoid()
    dice = (2 * (share * masks).sum() + 1) / (share.sum() + masks.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + 1 - dice


def metrics_for(task: Task, classes: int) -> Any:
    """A torchmetrics.MetricCollection, to update with (logits, integer targets); `compute` covers all DDP ranks.

    Multiclass: accuracy. Binary: auroc, accuracy. Multilabel: the same, averaged over labels. Segmentation: dice, over
    all pixels of all images.
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
    return MetricCollection({"auroc": tm.MultilabelAUROC(classes), "accuracy": tm.MultilabelAccuracy(classes)})


def compute(metrics: Any) -> dict[str, float]:
    """The values of a collection, as numbers."""
    return {name: float(value) for name, value in metrics.compute().items()}
