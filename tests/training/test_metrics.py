"""Metrics: they are what their names say, and labels that are not known do not count."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')


from explainfix_ext.training import metrics
from explainfix_ext.training.task_auroc import TaskAUROC


def test_metrics_are_what_their_names_say():
    cases = [
        ("multiclass", 3, [[2.0, 1, 0], [0, 1, 2], [0, 2, 1], [1, 0, 2]], [0, 2, 1, 1], {"accuracy": 0.75}),
        ("binary", 2, [[-1.0], [0.5], [1.0], [2.0]], [[0], [1], [0], [1]], {"auroc": 0.75, "accuracy": 0.75}),
        ("multilabel", 2, [[-1.0, 1], [1, -1]], [[0, 1], [1, 0]], {"auroc": 1.0, "accuracy": 1.0}),
        ("multilabel", 2, [[-1.0, 1], [1, -1]], [[0, 1], [1, 1]], {"auroc": 1.0, "accuracy": 0.75}),  # one has none
        ("segmentation", 1, [[[[1.0, -1], [1, 1]]]], [[[[1, 1], [0, 1]]]], {"dice": 2 * 2 / (2 * 2 + 1 + 1)}),
    ]
    for task, classes, logits, targets, expected in cases:
        scores = metrics.metrics_for(task, classes)
        scores.update(torch.tensor(logits), torch.tensor(targets))
        assert metrics.compute(scores) == pytest.approx(expected)


def test_auroc_is_by_task_over_known_labels() -> None:
    from torchmetrics.functional.classification import binary_auroc

    scores = metrics.metrics_for("multilabel", 4, ("a", "b", "c", "d"))
    logits, targets = torch.randn(40, 4), torch.randint(2, (40, 4)).float()
    targets[torch.rand(40, 4) < 0.3] = math.nan
    targets[:, 2] = targets[:, 2] * 0  # one class only
    for part in range(0, 40, 8):
        metrics.add_batch(scores, logits[part : part + 8], targets[part : part + 8])
    known = ~targets.isnan()
    each = [float(binary_auroc(logits[known[:, t], t], targets[known[:, t], t].long())) for t in (0, 1, 3)]
    found = metrics.compute(scores)
    expected = {"auroc": sum(each) / 3} | {f"auroc/{name}": value for name, value in zip("abd", each, strict=True)}
    assert {key: value for key, value in found.items() if key != "accuracy"} == pytest.approx(expected)
    right = [((logits > 0) == (targets == 1))[known[:, t], t].float().mean() for t in range(4)]
    assert found["accuracy"] == pytest.approx(float(sum(right) / 4))


def test_no_known_label_gives_no_auroc() -> None:
    metric = TaskAUROC(("a",))
    metric.update(torch.rand(5, 1), torch.full((5, 1), -1))
    assert math.isnan(metric.compute()["auroc"])
    assert list(metric.compute()) == ["auroc"]


def test_small_logits_are_no_probabilities() -> None:
    """Two batches whose order is known: the first has logits in [0, 1], which torchmetrics would take as they are."""
    scores = metrics.metrics_for("binary", 2)
    for logits, targets in (([[0.9], [0.8]], [[0.0], [0.0]]), ([[1.5], [-3.0]], [[1.0], [0.0]])):
        metrics.add_batch(scores, torch.tensor(logits), torch.tensor(targets))
    assert metrics.compute(scores)["auroc"] == 1
