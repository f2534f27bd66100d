"""The numbers of a report are those of the analyses; what a network does not allow is left out and named."""

from __future__ import annotations

import json
import re

import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from support.page import check_structure, explained_by_name
from support.tiny_run import CPU, images, train

from explainfix_ext import explainsteer, memory_report, save_memory, summary
from explainfix_ext.commands.webpage import run as explain_run
from explainfix_ext.commands.webpage.findings import findings
from explainfix_ext.commands.webpage.page import report_page
from explainfix_ext.commands.webpage.run import AMOUNTS, explain
from explainfix_ext.commands.webpage.subject import ExplainConfig
from explainfix_ext.explain.spectra import Spectra
from explainfix_ext.training.checkpoint import load_weights
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.final_scores import final_scores
from explainfix_ext.training.network import make_network
from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint
from explainfix_ext.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")


@pytest.mark.parametrize("init", ["learned", "dct2"])
def test_page_and_json_have_the_numbers_of_the_analyses(run_explain, checkpoints, tmp_path, init):
    path = checkpoints[init]
    code, out, error = run_explain(f'"{path}" --batches 3 --device cpu --json')
    assert code == 0, error
    assert error == ""
    found, page = json.loads(out), check_structure((tmp_path / "report.html").read_text())
    assert found["missing"] == {}
    config = TrainConfig(**torch.load(path)["config"])
    data = load_dataset(config.data, config.seed)
    network, start = (make_network(config, data)[0] for _ in range(2))
    load_weights(network, path)
    trainer = Trainer(config, data, CPU, network=network)
    batches = [tuple(batch) for batch in trainer.train_loader][:3]
    for name, model, given in (
        ("filters", network, None),
        ("saliency", network, batches),
        ("start_filters", start, None),
        ("start_saliency", start, batches),
    ):
        expected = explainsteer(model, given)
        spectra = Spectra.from_json(json.dumps(found["spectra"][name]))
        assert all(torch.allclose(spectra.ed[n], expected.ed[n], rtol=1e-5) for n in expected.ed), name
    assert found["scored_images"] == 45
    assert (found["test"], found["confusion"]) == final_scores(trainer)
    assert page.tables["confusion"][1:] == [[str(k), *map(str, row)] for k, row in enumerate(found["confusion"]["all"])]
    assert f"{found['test']['accuracy']:.4f}" in page.text["network"]
    layers = summary(network, (1, 1, 12, 12)).layers
    assert found["summary"] == json.loads(json.dumps([vars(layer) for layer in layers]))
    for layer, row in zip(layers, page.tables.get("layers", [])[1:-1], strict=True):
        assert row[:5] == [layer.name, "x".join(map(str, layer.shape)), layer.init, layer.kernel, f"{layer.nonzero:,}"]
        assert row[5:7] == [f"{layer.stored_bytes / 1e3:,.1f}", f"{layer.dense_bytes / 1e3:,.1f}"]
    assert ("layers" in page.tables) == (init == "dct2")
    save_memory(network, "recompute")
    memory = memory_report(network.train(), data.train[:8][0])
    assert found["memory"]["recompute"]["ours"]["peak_bytes"] == memory.ours.peak
    rows = {row[0]: row[1:] for row in page.tables["memory-modes"]}
    assert list(rows) == ["mode", "torch", "off", "exact", "recompute", "int8"]
    assert rows["recompute"][0] == f"{memory.ours.peak / 2**20:,.2f}"
    assert rows["torch"][0] == f"{memory.frozen.peak / 2**20:,.2f}"
    kinds = {row[0]: row[4] for row in page.tables["memory-kinds"]}
    assert kinds["BatchNorm2d"] == f"{memory.by(lambda name, kind: kind)[0]['BatchNorm2d'] / 2**20:,.2f}"


def test_pruning_is_that_of_the_command_prune(run_explain, checkpoints, tmp_path):
    path = checkpoints["dct2"]
    code, out, error = run_explain(f'"{path}" --batches 3 --device cpu --json')
    assert code == 0, error
    page = check_structure((tmp_path / "report.html").read_text())
    amounts = json.loads(out)["pruning"]["amounts"]
    assert [entry["amount"] for entry in amounts] == [*AMOUNTS]
    pruned = prune_checkpoint(path, tmp_path / "o", PruneConfig(amount=0.9, epochs=0, batches=3), device="cpu")
    entry = next(entry for entry in amounts if entry["amount"] == 0.9)
    assert entry["test"] == pytest.approx(pruned["test"]["pruned"], rel=1e-6)
    for name in ("parameters", "multiply_adds", "pruned_filters", "verify_error"):
        assert entry[name] == pytest.approx(pruned["report"][name]), name
    rows = {row[0]: row[1:] for row in page.tables["pruned"]}
    assert list(rows) == ["filters pruned", "0%", "50%", "80%", "90%", "95%", "99%"]
    assert rows["90%"][:2] == [f"{entry['pruned_filters']:.0%}", f"{entry['parameters'][1]:,}"]
    assert rows["90%"][3] == f"{entry['multiply_adds'][1] / 1e6:,.2f}"
    for amount, share in (("90%", entry["test"]["accuracy"]), ("0%", pruned["test"]["unpruned"]["accuracy"])):
        error = (share * (1 - share) / 30) ** 0.5  # of 30 test images
        assert rows[amount][-1] == f"{share:.4f} ± {error:.4f}"


@pytest.mark.parametrize(
    "trained",
    [
        {"init": "learned", "memory": "recompute"},
        {"init": "ghaar4_s1", "learn_coeff": True, "amp": "bf16"},
        {"init": "dct2", "pointwise": True, "classes": 2, "limit": 40},
    ],
)
def test_all_that_can_be_trained_can_be_explained(tmp_path, trained):
    found = explain(ExplainConfig(model=str(train(tmp_path, **trained)), batches=2, device="cpu"), "")
    assert found.missing == {}
    page = check_structure(report_page(found))
    assert ("memory mode recompute" in page.text["network"]) == ("memory" in trained)
    assert ("2 mixed" in page.text["network"]) == ("learn_coeff" in trained)
    assert ("pointwise" in page.text["network"]) == ("pointwise" in trained)
    assert found.as_dict()["data"]["train"] == trained.get("limit", 90)


def test_model_by_name_without_data_says_what_it_lacks(run_explain, tmp_path):
    code, out, error = run_explain("tiny --size 2x12x10 --classes 4 --device cpu")
    assert code == 0, error
    assert "not in the report: saliency: no data was given" in out
    page = check_structure((tmp_path / "report.html").read_text())
    assert "random images of 2x12x10" in page.text["network"]
    assert "No test scores: no data was given" in page.text["network"]
    assert "No spectra with saliency: no data was given" in page.text["spectra"]
    assert "The network has no fixed layer" in page.text["summary"]
    assert "l1, the sum of |w|" in page.text["pruning"]


def test_untraceable_model_gets_a_report_that_says_so(run_explain, tmp_path):
    images(tmp_path / "some.npz")
    code, out, error = run_explain("odd --data some.npz --batches 1 --device cpu --json")
    assert code == 0, error
    missing = json.loads(out)["missing"]
    page = check_structure((tmp_path / "report.html").read_text())
    for part in ("saliency", "memory", "pruning"):
        assert "\n" not in missing[part]
    assert missing["pruning"] in page.text["pruning"]
    assert missing["memory"] in page.text["memory"]
    assert missing["saliency"] in page.text["spectra"]
    code, out, error = run_explain("odd --size 1x12x12 --classes 3 --device cpu --json")
    assert code == 0, error
    assert "torch.fx" in json.loads(out)["missing"]["pruning"] or "autograd" in json.loads(out)["missing"]["pruning"]


def test_model_without_spatial_convolutions(run_explain, tmp_path):
    code, out, error = run_explain("flat --size 1x4x4 --classes 3 --device cpu")
    assert code == 0, error
    page = check_structure((tmp_path / "report.html").read_text())
    assert "no spatial convolution" in page.text["spectra"]
    assert "no spatial convolution" in page.text["filters"]
    assert "no spatial convolution" in page.text["pruning"]


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
    found = explained_by_name(init="dct2")
    assert (found.memory, found.missing["memory"]) == ({}, "no room")
    assert not any("memory" in line for line in findings(found))
    page = check_structure(report_page(found))
    assert "no room" in page.text["memory"]
