"""The parts of a report about classes: their numbers are those of the analyses, and each sentence follows from them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')
pytest.importorskip("sklearn", reason='needs the extra "explain"')

from support.page import check_structure, explained_by_name
from support.tiny_run import CPU, Tiny, images, train

import explainfix_ext as efx
from explainfix_ext.commands.webpage.classes import Directions, Groups
from explainfix_ext.commands.webpage.explained import Explained
from explainfix_ext.commands.webpage.findings import findings
from explainfix_ext.commands.webpage.page import report_page
from explainfix_ext.commands.webpage.run import explain
from explainfix_ext.commands.webpage.subject import ExplainConfig
from explainfix_ext.training import models
from explainfix_ext.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")
BATCHES = 5


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Explained:
    """A network of three classes; its activations are called 2, 5, 8 and 11."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", Tiny)
        path = train(tmp_path_factory.mktemp("classes"), init="dct2", epochs=6)
        return explain(ExplainConfig(model=str(path), batches=BATCHES, device="cpu"), "")


@pytest.fixture(scope="module")
def batches(found) -> list[Any]:
    training = found.subject.training
    trainer = Trainer(training, found.subject.images, CPU, network=found.subject.network)
    return [tuple(batch) for batch in itertools.islice(trainer.train_loader, BATCHES)]


def said(found: Explained, word: str) -> str:
    """The one sentence that has this word; "" if there is none."""
    lines = [line for line in findings(found) if word in line]
    assert len(lines) <= 1
    return lines[0] if lines else ""


def test_channels_are_those_of_class_purity(found, batches):
    expected = efx.class_purity(found.subject.network, batches)
    assert list(expected.purity) == ["2", "5", "8", "11"]
    for name, purity in expected.purity.items():
        assert torch.equal(found.purity.purity[name], purity)
    page = check_structure(report_page(found))
    row = next(row for row in page.tables["purities"] if row[0] == "11")
    purity, follows = expected.purity["11"], int(expected.follows["11"].sum())
    best = int(purity.argmax())
    assert row[1:4] == ["12", f"{follows}", f"{purity[best]:.3f}"]
    assert row[4:6] == [f"{expected.top['11'][best]}", f"{expected.chance['11']:.3f}"]
    entry = json.loads(json.dumps(found.as_dict()))["class_purity"]["11"]
    assert entry["follow"] == follows
    assert entry["mis"] == expected.mis["11"]
    layer = max(expected.mis, key=lambda name: expected.mis[name] - expected.mis_chance[name])
    values = expected.purity[layer]
    best = int(values.argmax())
    line = said(found, "Channels follow single classes")
    assert f"most in {layer}: {int((values > expected.chance[layer]).sum())} of {len(values)} tell" in line
    assert f"(purity {expected.chance[layer]:.2f})" in line
    assert f"takes away {values[best]:.0%} of the uncertainty" in line
    assert line.endswith(f"is of class {int(expected.top[layer][best])}.")
    assert line in page.text["findings"]


def test_channels_that_tell_nothing_are_called_so(found):
    purity = dataclasses.replace(found.purity, chance=dict.fromkeys(found.purity.chance, 1.0))
    less = dataclasses.replace(found, purity=purity)
    assert "In no layer a channel tells one class from the others" in said(less, "channel tells")
    assert not said(less, "Channels follow")


def test_inputs_are_those_of_class_features(found, batches):
    test = found.subject.images.test
    expected = efx.class_features(found.subject.network, batches, [test[:]])
    assert found.features.accuracy == pytest.approx(expected.accuracy)
    assert found.features.chance == pytest.approx(expected.chance)
    assert found.features.accuracy[48] == pytest.approx(found.test["accuracy"])
    entry = json.loads(json.dumps(found.as_dict()))["class_features"]
    assert entry["accuracy"]["48"] == found.features.accuracy[48]


@pytest.mark.parametrize(
    ("accuracy", "sentence"),
    [
        ((0.5, 0.8, 0.9), "2 of the last layer's 4 inputs are enough for each class"),
        ((0.95, 0.8, 0.9), "1 of the last layer's 4 inputs are enough for each class"),
        ((0.5, 0.6, 0.9), "The last layer needs more than 2 of its 4 inputs for each class"),
    ],
)
def test_how_many_inputs_are_enough(found, accuracy, sentence):
    accuracy = dict(zip((1, 2, 4), accuracy, strict=True))
    accuracy[2] += 0.095 if "2 of the last" in sentence else 0  # within a point
    features = dataclasses.replace(found.features, accuracy=accuracy, chance={1: 0.31, 2: 0.32, 4: 0.9})
    line = said(dataclasses.replace(found, features=features), "last layer")
    assert line.startswith(sentence)
    kept = int(sentence[0]) if sentence[0].isdigit() else 2
    assert f"{accuracy[kept]:.3f}, and 0.900 with all" in line
    assert (f"with {kept} random ones it is 0.3{kept}" in line) == sentence[0].isdigit()


def test_groups_are_those_of_patterns_and_their_pictures_are_of_them(found, batches):
    groups = found.groups
    expected = efx.patterns(found.subject.network, batches, "11")  # of equally wide layers the last
    assert torch.equal(groups.found.group, expected.group)
    assert groups.found.sizes
    x = torch.cat([x for x, _ in batches])
    for i, pictures in enumerate(groups.pictures):
        assert torch.allclose(pictures[0], x[expected.group == i].mean(0), atol=1e-6)
        assert torch.equal(pictures[1:], x[expected.typical(i)])
    y = torch.cat([y for _, y in batches])
    most = [torch.bincount(y[expected.group == i]).max().item() for i in range(len(expected.sizes))]
    assert groups.alike == pytest.approx(sum(most) / sum(expected.sizes))
    assert [share for _, share in groups.common] == pytest.approx(
        [n / size for n, size in zip(most, expected.sizes, strict=True)]
    )
    assert groups.alike_chance < 0.7
    page = check_structure(report_page(found))
    assert " in 11, of 75 training images" in page.text["groups"]
    line = said(found, "treats")
    assert f"11 treats {expected.grouped:.0%} of 75 training images alike in {len(expected.sizes)} group" in line
    assert f"({expected.chance:.0%} when its channels are shuffled" in line
    assert f"{groups.alike:.1%} are of their group's most common class ({groups.alike_chance:.1%} with" in line


def test_no_groups_and_groups_without_classes(found):
    none = dataclasses.replace(found.groups.found, group=torch.full((75,), -1))
    without = dataclasses.replace(found, groups=Groups(none, [], [], None, None))
    assert said(without, "group") == "In 11 no group stands out among 75 training images."
    assert "there is no group among 75 images" in check_structure(report_page(without)).text["groups"]
    plain = dataclasses.replace(found, groups=dataclasses.replace(found.groups, common=[], alike=None))
    assert said(plain, "treats").endswith("among the images).")


def test_directions_are_those_of_prca(found, batches):
    network, directions = found.subject.network, found.directions
    assert (directions.layer, directions.channels, directions.images) == ("11", 12, 30)
    expected = efx.prca(network, batches, "11")
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    x, y = found.subject.images.test[:]
    assert len(order) == len(x)
    for c in range(3):
        with torch.no_grad(), expected.removed(network.eval(), c):
            right = network(x).argmax(1) == y
        assert directions.own[c][1] == pytest.approx(right[y == c].double().mean().item())
        assert directions.others[c][1] == pytest.approx(right[y != c].double().mean().item())
        whole = network(x).argmax(1) == y
        assert directions.own[c][0] == pytest.approx(whole[y == c].double().mean().item())
    rows = {row[0]: row[1:] for row in check_structure(report_page(found)).tables["class-directions"]}
    assert list(rows) == ["class", "0", "1", "2"]
    assert rows["1"][:3] == [f"{share:.1%}" for share in (*directions.own[1], directions.random[1])]


def test_the_sentence_about_directions_has_means_over_classes(found):
    made = Directions("layer", 64, 100, {0: (1, 0.2), 1: (0.8, 0.4)}, {0: (0.8, 0.7), 1: (1, 0.9)}, {0: 1, 1: 0.6})
    assert made.means() == pytest.approx((0.9, 0.3, 0.9, 0.8, 0.8))
    line = said(dataclasses.replace(found, directions=made), "direction of")
    assert line.startswith(
        "With the direction of layer that carries most for a class, one of 64, held at its mean, 30%"
    )
    assert "recognised instead of 90%, and 80% of the others' instead of 90%; with a random direction held, 80%" in line
    assert line.endswith("(means over 2 classes).")


def test_random_directions_do_less_than_the_classs_own(found):
    _, own, _, _, random = found.directions.means()
    assert own < random


def test_without_data_there_are_no_sections():
    found = explained_by_name(init="dct2")
    parts = ("class purity", "class features", "groups", "class directions")
    assert all(found.missing[part] == "no data was given (--data)" for part in parts)
    assert "channels" not in check_structure(report_page(found)).text
    assert found.as_dict()["groups"] is None


def test_images_with_masks_have_groups_alone(run_explain, tmp_path, monkeypatch):
    def flat(in_channels: int, num_classes: int, width: float) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, num_classes, 1))

    monkeypatch.setitem(models.PRESETS, "pixels", flat)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (60, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "masks.npz", images=pictures, masks=pictures > 200)
    code, out, error = run_explain("pixels --data bbbc038:masks.npz --batches 1 --device cpu --json")
    assert code == 0, error
    found = json.loads(out)
    page = check_structure((tmp_path / "report.html").read_text())
    for part, section in (("class purity", "channels"), ("class directions", "directions")):
        assert found["missing"][part] == "the images have masks, and no classes"
        assert found["missing"][part] in page.text[section]
    assert found["groups"]["images"] == 48
    assert found["groups"]["alike"] is None


def test_several_labels_have_channels_and_no_directions(run_explain, tmp_path):
    arrays = dict(np.load(images(tmp_path / "one.npz", classes=2)))
    for name in ("train", "val", "test"):
        labels = arrays[f"{name}_labels"]
        arrays[f"{name}_labels"] = np.concatenate([labels, 0 * labels + np.arange(len(labels))[:, None] % 2], axis=1)
    np.savez(tmp_path / "many.npz", **arrays)
    code, out, error = run_explain("tiny --data many.npz --batches 1 --device cpu --json")
    assert code == 0, error
    found = json.loads(out)
    assert found["class_purity"].keys() == {"2", "5", "8", "11"}
    assert found["missing"]["class features"].startswith("y must say one class for each image")


def test_without_scikit_learn_it_says_what_to_install(monkeypatch, run_explain, checkpoints):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    code, out, error = run_explain(f'"{checkpoints["dct2"]}" --batches 2 --device cpu')
    assert code == 0, error
    assert 'not in the report: groups: patterns needs scikit-learn: pip install "explainfix_ext[explain]"' in out
