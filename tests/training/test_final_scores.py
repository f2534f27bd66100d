"""Scores of whole predictions: against plain definitions, and by hand where the answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')

from support.dropout_run import CPU, stripes

from explainfix_ext.training import distributed
from explainfix_ext.training.data import Dataset, load_dataset
from explainfix_ext.training.final_scores import (
    _gathered,
    confusion_matrix,
    f2,
    final_scores,
    fit_thresholds,
    mcc,
    study_auroc,
)
from explainfix_ext.training.trainer import Trainer


def f2_of(predicted: list[int], true: list[int]) -> float:
    return f2(torch.tensor([predicted]) == 1, torch.tensor([true]).float())


def test_f2_is_5pr_over_4p_plus_r() -> None:
    assert f2_of([1, 1], [1, 0]) == pytest.approx(2.5 / 3)  # P = 1/2, R = 1: .8333
    assert f2_of([1, 0], [1, 1]) == pytest.approx(2.5 / 4.5)  # P = 1, R = 1/2
    assert f2_of([0, 1], [1, 0]) == 0
    assert f2_of([0, 0], [0, 0]) == 1
    predicted, targets = torch.rand(30, 6) < 0.5, (torch.rand(30, 6) < 0.5).float()
    predicted[:, 0] = targets[:, 0] = 1  # so that P and R are numbers
    expected = 0.0
    for said, true in zip(predicted, targets == 1, strict=True):
        right = int((said & true).sum())
        precision, recall = right / int(said.sum()), right / int(true.sum())
        expected += 5 * precision * recall / (4 * precision + recall) / 30
    assert f2(predicted, targets) == pytest.approx(expected)
    unknown = torch.cat([targets, torch.full((30, 2), math.nan)], 1)
    assert f2(torch.cat([predicted, torch.rand(30, 2) < 0.5], 1), unknown) == pytest.approx(expected)


def test_thresholds_are_fitted_by_label() -> None:
    """Of the first label probabilities above 0.62 are right, of the second those above 0.31."""
    shares = torch.rand(400, 2)
    targets = (shares > torch.tensor([0.62, 0.31])).float()
    thresholds = fit_thresholds(shares, targets)
    assert f2(shares > thresholds, targets) > 0.95 > f2(shares > 0.5, targets)
    assert float(thresholds[1]) == pytest.approx(0.3, abs=0.051)
    assert float(thresholds[0]) == pytest.approx(0.6, abs=0.051)


def test_mcc_is_that_of_torchmetrics_and_of_hand() -> None:
    from torchmetrics.functional.classification import multiclass_matthews_corrcoef

    targets, predicted = torch.randint(4, (200,)), torch.randint(4, (200,))
    predicted[:90] = targets[:90]
    matrix = confusion_matrix(targets, predicted, 4)
    assert int(matrix[1, 2]) == int(((targets == 1) & (predicted == 2)).sum())
    assert mcc(matrix) == pytest.approx(float(multiclass_matthews_corrcoef(predicted, targets, 4)), rel=1e-5)
    tn, fp, fn, tp = 50, 10, 5, 35
    by_hand = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert mcc(torch.tensor([[tn, fp], [fn, tp]])) == pytest.approx(by_hand)
    assert mcc(torch.tensor([[5, 0], [3, 0]])) == 0


def test_a_study_has_the_highest_probability_of_its_views() -> None:
    """Two studies of two views, and one of one: each view alone says another order."""
    shares = torch.tensor([[0.9], [0.1], [0.2], [0.3], [0.8]])
    targets = torch.tensor([[1.0], [1.0], [0.0], [math.nan], [0.0]])
    studies = torch.tensor([4, 4, 0, 0, 1])
    assert study_auroc(shares, targets, studies, ("a",)) == {"study_auroc": 1.0, "study_auroc/a": 1.0}
    shares[0] = 0.5
    assert study_auroc(shares, targets, studies, ()) == {"study_auroc": 0.5}


def test_logits_of_all_ranks_are_in_the_order_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(7.0)[:, None]
    shares = [(images[rank::3], images[rank::3]) for rank in range(3)]
    monkeypatch.setattr(distributed, "gather", lambda value: shares)
    assert torch.equal(_gathered([(images, images)])[0], images)


def answers(data: Dataset, right: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Logits that are right where `right` is true, and wrong elsewhere."""
    sign = torch.where(right[:, None], 1.0, -1.0)
    targets = data.test.tensors[1]
    truth = torch.nn.functional.one_hot(targets, 3) if data.task == "multiclass" else targets
    return [(3 * sign * (2 * truth - 1), targets)]


@pytest.mark.parametrize(("classes", "width", "task"), [(3, 1, "multiclass"), (2, 1, "binary"), (2, 3, "multilabel")])
def test_a_network_is_scored_by_its_predictions(tmp_path, monkeypatch, config, classes, width, task) -> None:
    config = replace(config, data=stripes(tmp_path / "s.npz", classes, width))
    data = load_dataset(config.data)
    trainer = Trainer(config, data, CPU)
    scores, confusion = final_scores(trainer)
    plain = trainer.evaluate(data.test)
    assert {name: scores[name] for name in plain} == plain
    assert set(scores) - set(plain) == ({"mcc", "f2"} if task == "multilabel" else {"mcc"})
    assert [*confusion] == (["0", "1", "2"] if task == "multilabel" else ["all"])
    assert all(sum(map(sum, matrix)) == 33 for matrix in confusion.values())
    right = torch.rand(33) < 0.9

    def evaluate(dataset, kept=None):
        kept += answers(data, right) if dataset is data.test else [(data.val.tensors[1] - 0.5, data.val.tensors[1])]
        return {}

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    scores, confusion = final_scores(trainer)
    diagonal = sum(matrix[k][k] for matrix in confusion.values() for k in range(len(matrix)))
    assert diagonal == int(right.sum()) * len(confusion)
    assert 0.5 < scores["mcc"] < 1


def test_masks_have_the_scores_of_evaluate(config, monkeypatch) -> None:
    data = replace(load_dataset(config.data), task="segmentation")
    trainer = Trainer(config, load_dataset(config.data), CPU)
    trainer.data = data
    monkeypatch.setattr(trainer, "evaluate", lambda dataset: {"dice": 0.5})
    assert final_scores(trainer) == ({"dice": 0.5}, {})
