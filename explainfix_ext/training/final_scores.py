"""Scores a trained network by all of its predictions on the test images at once: what `evaluate` has, and more.

`runs` and the web page call `final_scores`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import distributed

if TYPE_CHECKING:
    from .trainer import Trainer

Confusion = dict[str, list[list[int]]]

MOST_CLASSES = 100  # a confusion matrix of more is left out
_FIRST, _THRESHOLDS = 0.2, torch.arange(0.05, 1, 0.05)  # from which thresholds of F2 are fitted, and those tried


def final_scores(trainer: Trainer) -> tuple[dict[str, float], Confusion]:
    """Tests a network. Every rank must call it, and gets the same.

    Returns:
        The scores of `Trainer.evaluate` on the test images. For classes and labels also "mcc", Matthews' correlation
        coefficient; where labels have names, that of each ("mcc/NAME"), and the mean is over labels with both classes.
        For several labels "f2", see `f2`, with thresholds fitted on the validation images. For studies of several
        images "study_auroc", and that of each label: the AUROC of the highest probability of a study's images.

        Confusion matrices, rows true and columns predicted (the likeliest class; for labels a probability above 0.5):
        {"all": matrix}, or name or number of a label -> [[0 as 0, 0 as 1], [1 as 0, 1 as 1]]. Empty for masks.
    """
    data = trainer.data
    if data.task == "segmentation":
        return trainer.evaluate(data.test), {}
    kept: list[tuple[Tensor, Tensor]] = []
    scores = trainer.evaluate(data.test, kept)
    logits, targets = _gathered(kept)
    if data.task == "multiclass":
        matrix = confusion_matrix(targets, logits.argmax(1), data.classes)
        found = {"all": matrix} if data.classes <= MOST_CLASSES else {}
        return scores | {"mcc": mcc(matrix)}, _as_lists(found)
    names = data.labels or [str(label) for label in range(targets.shape[1])]
    matrices = {name: _of_label(targets[:, t], logits[:, t]) for t, name in enumerate(names)}
    if data.task == "binary":
        return scores | {"mcc": mcc(matrices["0"])}, _as_lists({"all": matrices["0"]})
    each = {name: mcc(matrix) for name, matrix in matrices.items() if bool(matrix.sum(1).all())}
    scores["mcc"] = sum(each.values()) / len(each) if each else math.nan
    scores |= {f"mcc/{name}": value for name, value in each.items() if data.labels}
    if data.studies is not None:
        scores |= study_auroc(logits.sigmoid(), targets, data.studies, data.labels)
    trainer.evaluate(data.val, kept := [])
    validated, truth = _gathered(kept)
    thresholds = fit_thresholds(validated.sigmoid(), truth)
    return scores | {"f2": f2(logits.sigmoid() > thresholds, targets)}, _as_lists(matrices)


def _gathered(kept: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Puts the logits and targets of all ranks, each of which has every so many-th image, into the images' order."""
    logits, targets = (torch.cat(parts).cpu() for parts in zip(*kept, strict=True))
    ranks = distributed.gather((logits, targets))
    whole = []
    for parts in zip(*ranks, strict=True):
        together = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
        for rank, part in enumerate(parts):
            together[rank :: len(parts)] = part
        whole.append(together)
    return whole[0], whole[1]


def _of_label(targets: Tensor, logits: Tensor) -> Tensor:
    known = ~targets.isnan()
    return confusion_matrix(targets[known].long(), (logits[known] > 0).long(), 2)


def _as_lists(matrices: dict[str, Tensor]) -> Confusion:
    return {name: matrix.tolist() for name, matrix in matrices.items()}


def confusion_matrix(targets: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts classes (N,) against classes (N,), both int64: (classes, classes), rows true and columns predicted."""
    return torch.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)


def mcc(matrix: Tensor) -> float:
    """Computes Matthews' correlation coefficient of a confusion matrix, 0 where truth or predictions are of one class.

    Source: Gorodkin 2004, Comparing two K-category assignments by a K-category correlation coefficient.
    """
    counts = matrix.double()
    total, true, predicted = counts.sum(), counts.sum(1), counts.sum(0)
    spread = (total**2 - true.square().sum()) * (total**2 - predicted.square().sum())
    agreed = counts.diagonal().sum() * total - true @ predicted
    return float(agreed / spread.sqrt()) if spread > 0 else 0.0


def study_auroc(shares: Tensor, targets: Tensor, studies: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Computes the AUROC of studies, by the highest probability among the images of each.

    Args:
        shares, targets: (N, labels) probabilities, and 0, 1 or NaN; a study has a label if one of its images has.
        studies: (N,) int64, the number of each image's study.
        names: of the labels.

    Returns:
        "study_auroc", the mean over labels, and "study_auroc/NAME".
    """
    from .task_auroc import UNKNOWN, TaskAUROC

    metric = TaskAUROC(names)
    labels = targets.nan_to_num(UNKNOWN)
    highest = [torch.stack([part[studies == study].amax(0) for study in studies.unique()]) for part in (shares, labels)]
    metric.update(highest[0], highest[1].long())
    return {f"study_{name}": float(value) for name, value in metric.compute().items()}


def f2(predicted: Tensor, targets: Tensor) -> float:
    """Computes the mean over images of 5 P R / (4 P + R), with precision P and recall R of an image's labels.

    An image without labels, of which none is predicted, has 1.

    Args:
        predicted: (N, labels) bool.
        targets: (N, labels) 0, 1 or NaN, which does not count.
    """
    true, false = targets == 1, targets == 0
    right, wrong, missed = (predicted & true).sum(1), (predicted & false).sum(1), (~predicted & true).sum(1)
    total = 5 * right + wrong + 4 * missed
    return float(torch.where(total == 0, 1.0, 5 * right / total).mean())


def fit_thresholds(shares: Tensor, targets: Tensor) -> Tensor:
    """Finds for each label the threshold of its probabilities that gives the best F2, one label after another, once.

    Args:
        shares: (N, labels) probabilities.
        targets: (N, labels) 0, 1 or NaN.

    Returns:
        (labels,) in steps of 0.05.
    """
    thresholds = torch.full((shares.shape[1],), _FIRST)
    for label in range(len(thresholds)):
        ways = []
        for threshold in _THRESHOLDS:
            thresholds[label] = threshold
            ways.append(f2(shares > thresholds, targets))
        thresholds[label] = _THRESHOLDS[ways.index(max(ways))]
    return thresholds
