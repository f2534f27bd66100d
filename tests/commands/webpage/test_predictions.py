"""What the page says of predictions: probabilities of the network, counts of labels, masks beside the true ones."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')

from support.dropout_run import CPU, DropoutNet, stripes
from support.page import Page

from explainfix_ext.commands.webpage.html import join
from explainfix_ext.commands.webpage.prediction_section import predictions_section
from explainfix_ext.commands.webpage.predictions import find_predictions
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.final_scores import final_scores
from explainfix_ext.training.trainer import Trainer


def page_of(found: SimpleNamespace) -> Page:
    return Page(join(predictions_section(found)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("classes", "width", "task"), [(3, 1, "multiclass"), (2, 1, "binary"), (2, 3, "multilabel")])
def test_probabilities_and_counts_are_those_of_the_network(tmp_path, classes, width, task) -> None:
    data = load_dataset(stripes(tmp_path / "s.npz", classes, width))
    data = replace(data, labels=("a", "b", "c")) if task == "multilabel" else data
    network = DropoutNet(1, data.outputs)
    trainer = Trainer(TrainConfig(data=data.name), data, CPU, network=network)
    scores, confusion = final_scores(trainer)
    said = find_predictions(trainer, data.test)
    network.eval()
    logits = network(data.test.tensors[0]).detach()
    torch.testing.assert_close(said.shares, logits.softmax(1) if task == "multiclass" else logits.sigmoid())
    assert said.targets.shape == said.shares.shape
    assert 0 <= float(said.images.min()) <= float(said.images.max()) <= 1
    found = SimpleNamespace(
        predictions=find_predictions(trainer, torch.utils.data.TensorDataset(*data.test[:6])),
        subject=SimpleNamespace(images=data),
        confusion=confusion,
        test=scores,
        missing={},
    )
    page = page_of(found)
    assert [figure["id"] for figure in page.all("figure")] == ["said", "confusion"]
    assert found.missing == {}
    rows = page.tables["confusion"][1:]
    if task == "multilabel":
        (tn, fp), (fn, tp) = confusion["b"]
        assert rows[1] == ["b", f"{scores['auroc/b']:.4f}", f"{scores['mcc/b']:.4f}", *map(str, (tp, fp, fn, tn))]
    else:
        assert rows == [[str(k), *map(str, row)] for k, row in enumerate(confusion["all"])]


def test_masks_are_drawn_beside_the_true_ones(tmp_path) -> None:
    data = load_dataset(stripes(tmp_path / "s.npz"))
    parts = {part: getattr(data, part).tensors[0] for part in ("train", "val", "test")}
    masks = {part: torch.utils.data.TensorDataset(x, (x > 0).float()) for part, x in parts.items()}
    data = replace(data, task="segmentation", classes=1, **masks)
    network = nn.Conv2d(1, 1, 3, padding=1)
    trainer = Trainer(TrainConfig(data=data.name), data, CPU, network=network)
    said = find_predictions(trainer, torch.utils.data.TensorDataset(*data.test[:4]))
    assert said.shares.shape == said.targets.shape == (4, 12, 12)
    torch.testing.assert_close(said.shares, network(data.test[:4][0]).sigmoid()[:, 0].detach())
    subject = SimpleNamespace(images=data)
    found = SimpleNamespace(predictions=said, subject=subject, confusion={}, test={}, missing={})
    page = page_of(found)
    assert [figure["id"] for figure in page.all("figure")] == ["said"]
    assert found.missing == {}
    assert "only predicted" in page.text[""]
    found.predictions, found.missing = None, {"predictions": "no data was given"}
    assert "It could not be run: no data was given" in page_of(found).text[""]
