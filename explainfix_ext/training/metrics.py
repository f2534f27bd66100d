"""Defines the metrics for each kind of task. `Trainer` computes them, tables and pictures name them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from explainfix_ext.training.sources.readers import Task

# The one metric that tables and curves show.
PRIMARY: dict[Task, str] = {
    "multiclass": "accuracy",
    "binary": "auroc",
    "multilabel": "auroc",
    "segmentation": "dice",
}
NAMES = {  # as shown to users
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "dice": "Dice",
    "loss": "loss",
    "mcc": "MCC",
    "study_auroc": "AUROC of studies",
    "f2": "F2",
}


def known(targets: Tensor) -> int:
    """Counts the targets that are not NaN, which is how much a batch's mean loss weighs in an epoch's."""
    return int((~targets.isnan()).sum())


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


def standard_error(share: float, images: int) -> float:
    """Returns the standard error of the share of `images` that are right."""
    return math.sqrt(share * (1 - share) / images)


def shown_with_error(metric: str, score: float | None, images: int) -> str:
    """Formats a score of so many images for users; an accuracy with its standard error, which is known.

    Examples:
        >>> shown_with_error("accuracy", 0.9, 400), shown_with_error("auroc", 0.9, 400)
        ('0.9000 ± 0.0150', '0.9000')
    """
    if metric != "accuracy" or score is None or math.isnan(score):
        return shown(score)
    return f"{shown(score)} ± {standard_error(score, images):.4f}"


def compute(metrics: Any) -> dict[str, float]:
    """Returns the values of a collection as numbers, by name."""
    return {name: float(value) for name, value in metrics.compute().items()}
