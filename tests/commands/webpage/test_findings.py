"""`explainfix explain`: what findings and captions say where a network or its data is out of the ordinary."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from support.page import check_structure
from support.tiny_run import Tiny, images, train

from explainfix_ext import convert, explainsteer, fit_steering
from explainfix_ext.commands.webpage import pictures as explain_pictures
from explainfix_ext.commands.webpage import run as explain_run
from explainfix_ext.commands.webpage.explained import Explained, Pruned
from explainfix_ext.commands.webpage.findings import findings
from explainfix_ext.commands.webpage.page import report_page
from explainfix_ext.commands.webpage.run import AMOUNTS, explain
from explainfix_ext.commands.webpage.subject import ExplainConfig
from explainfix_ext.training import models
from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
    monkeypatch.setitem(models.PRESETS, "tiny", Tiny)


@pytest.fixture(scope="module")
def binary(tmp_path_factory) -> Explained:
    """A trained network, which tells two classes apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", Tiny)
        path = train(tmp_path_factory.mktemp("binary"), classes=2, init="dct2")
        return explain(ExplainConfig(model=str(path), batches=2, device="cpu"), "")


def by_name(**given) -> Explained:
    return explain(ExplainConfig(model="tiny", device="cpu", **({"size": "1x12x12", "classes": 3} | given)), "")


def with_scores(found: Explained, whole: float, scores: dict[float, float | None]) -> Explained:
    """As if pruning had given these AUROCs; None: it failed."""
    report = found.pruned[0].report
    pruned = [
        Pruned(amount, reason="no") if score is None else Pruned(amount, report, {"auroc": score})
        for amount, score in scores.items()
    ]
    return dataclasses.replace(found, test={"auroc": whole}, pruned=pruned)


# Pruning ------------------------------------------------------------------------------------------------------------


def test_amounts_that_were_zero_before_are_named_and_not_counted():
    found = by_name(init="dct2@0.1")
    zero = [1 - module.bank.density for module in found.subject.network.modules() if hasattr(module, "bank")]
    filters = [12, 144]
    assert found.zero_before == pytest.approx(np.average(zero, weights=filters))
    assert found.as_dict()["pruning"]["zero_before"] == found.zero_before
    assert [pruned.amount for pruned in found.pruned_anew] == [0.95, 0.99]
    said = " ".join(findings(found))
    assert (
        f"{found.zero_before:.1%} of the spatial filters are zero already, before any pruning, so pruning 50%, 80% or "
        f"90% of them changes next to nothing." in said
    )
    assert "Without 95% of the spatial filters, " in said
    assert "Without 90%" not in said
    text = report_page(found)
    page = check_structure(text)
    assert f"{found.zero_before:.1%} were zero before" in page.text["pruning"]
    assert page.tables["pruned"][1][:2] == ["0%", "90%"]
    assert "multiply-adds left after pruning 90%" not in text


def test_networks_without_zeros_say_nothing_of_them(binary):
    assert binary.zero_before == 0
    assert "already, before" not in " ".join(findings(binary))
    assert check_structure(report_page(binary)).tables["pruned"][1][:2] == ["0%", "0%"]


@pytest.mark.parametrize(
    ("whole", "scores", "said"),
    [
        (0.9, (0.9, 0.9, 0.7, 0.9, 0.5), "Up to 80% of the spatial filters can go before the test AUROC (0.900) falls"),
        (0.9, (0.8, 0.9, 0.9, 0.9, 0.9), "pruning 50% of the spatial filters already costs more than one point of"),
        (0.9, (0.9,) * 5, "Even without 99% of the spatial filters the test AUROC (0.900 with all) has not fallen by"),
        (0.9, (0.9, None, 0.9, 0.9, 0.9), "Even without 50% of the spatial filters"),
        (0.9, (0.9, 0.9, None, 0.9, 0.1), "Even without 80% of the spatial filters"),
        (0.9, (None, 0.9, 0.9, 0.9, 0.9), ""),
        (0.9, (0.9, float("nan"), 0.9, 0.9, 0.9), "Even without 50% of the spatial filters"),
        (float("nan"), (float("nan"),) * 5, ""),
    ],
)
def test_what_pruning_costs_is_said_up_to_the_first_hole(binary, whole, scores, said):
    lines = findings(with_scores(binary, whole, dict(zip(AMOUNTS, scores, strict=True))))
    about = [line for line in lines if "AUROC" in line]
    assert len(about) == bool(said)
    assert all(said in line for line in about)


def test_a_score_that_is_not_defined_is_called_so(run, tmp_path):
    arrays = dict(np.load(images(tmp_path / "one.npz", classes=2)))
    for name in ("train", "val", "test"):
        labels = arrays[f"{name}_labels"]
        arrays[f"{name}_labels"] = np.concatenate([labels, 1 - labels] if name != "test" else [0 * labels] * 2, axis=1)
    np.savez(tmp_path / "many.npz", **arrays)
    code, out, error = run("explain tiny --data many.npz --batches 1 --device cpu")
    assert code == 0, error
    assert "undefined -> undefined" in out
    text = (tmp_path / "report.html").read_text()
    assert "AUROC undefined" in text
    assert "nan" not in check_structure(text).text["pruning"]


# Memory -------------------------------------------------------------------------------------------------------------


def test_memory_modes_are_compared_on_the_images_that_there_are(tmp_path):
    path = train(tmp_path, init="dct2", limit=5, batch_size=5)
    found = explain(ExplainConfig(model=str(path), batches=1, device="cpu"), "")
    assert found.as_dict()["memory"]["images"] == 5
    assert check_structure(report_page(found)).text["memory"].count("on 5 images") == 2
    said = next(line for line in findings(found) if "memory modes" in line)
    assert re.match(r"Of the memory modes with the same gradients, \w+ has the smallest peak: 0\.\d\d of plain", said)


def test_memory_that_failed_halfway_is_left_out(monkeypatch):
    def fail(network, mode):
        if mode == "int8":
            raise RuntimeError("no room")

    monkeypatch.setattr(explain_run, "save_memory", fail)
    found = by_name(init="dct2")
    assert (found.memory, found.missing["memory"]) == ({}, "no room")
    assert not any("memory" in line for line in findings(found))
    page = check_structure(report_page(found))
    assert "no room" in page.text["memory"]


# Where filters come from --------------------------------------------------------------------------------------------


def test_init_is_that_of_the_weights(tmp_path):
    network = Tiny(1, 3, 1)
    convert(network, {"0": "psine", "*": "dct2"}, seed=3, density=0.5)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    found = by_name(init="dct2", weights=tmp_path / "w.pt")
    assert torch.equal(found.spectra["filters"].ed["0"], explainsteer(network).ed["0"])
    assert found.as_dict()["init"] == "psine@0.5 and dct2@0.5"
    text = report_page(found)
    assert "tiny, psine@0.5 and dct2@0.5: ExplainFix report" in text
    convert(network := Tiny(1, 3, 1), "unchanged")
    torch.save(network.state_dict(), tmp_path / "w.pt")
    found = by_name(init="dct2", weights=tmp_path / "w.pt")
    assert "given filters: fixed filters, as the weights have them" in report_page(found)


@pytest.mark.parametrize(("init", "options"), [("guided_steer", {}), ("svd_steer", {"learn_coeff": True})])
def test_steered_networks_do_without_their_steering_file(run, tmp_path, init, options):
    steering = tmp_path / "s.safetensors"
    fit_steering(Tiny(1, 3, 1), init.partition("_")[0], energy=0.8).save(steering)
    path = train(tmp_path, init=init, steering=str(steering), **options)
    with_file = explain(ExplainConfig(model=str(path), batches=2, device="cpu"), "")
    assert "start filters" in with_file.spectra
    steering.unlink()
    found = explain(ExplainConfig(model=str(path), batches=2, device="cpu"), "")
    assert found.test == with_file.test
    assert set(found.spectra) == {"filters", "saliency"}
    assert [*found.missing] == ["before training"]
    assert "before training: No such file" in check_structure(report_page(found)).text["spectra"]
    pruned = prune_checkpoint(path, tmp_path / "o", PruneConfig(amount=0.5, epochs=0, batches=2), device="cpu")
    assert pruned["test"]["unpruned"] == found.test
    data = tmp_path / "images.npz"
    code, _, error = run(f"train --model tiny --data {data} --init {init} --steering {steering} --device cpu --out r")
    assert code == 2
    assert "s.safetensors" in error


# The page -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "segmentation", "multiclass"])
def test_caption_says_which_targets_add_nothing(binary, task):
    data = dataclasses.replace(binary.subject.images, task=task)
    found = dataclasses.replace(binary, test=None, subject=dataclasses.replace(binary.subject, images=data))
    text = check_structure(report_page(dataclasses.replace(found, pruned=[], missing={"pruning": "no"}))).text[
        "spectra"
    ]
    assert ("images with target 0 add nothing" in text) == (task == "binary")
    assert ("pixels with target 0 add nothing" in text) == (task == "segmentation")
    assert ("the true class's logit" in text) == (task == "multiclass")


def test_a_picture_that_fails_is_named_and_the_rest_is_there(run, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("no <ink>\nat all")

    monkeypatch.setattr(explain_pictures, "plot_filters", fail)
    code, out, error = run("explain tiny --size 1x12x12 --classes 3 --device cpu")
    assert code == 0, error
    page = check_structure((tmp_path / "report.html").read_text())
    assert page.text["filters"].count("No picture (Filters of 0): no <ink>.") == 1
    assert "e_d, the energy" in page.text["spectra"]
    assert "not in the report: picture filters-0: no <ink>" in out
