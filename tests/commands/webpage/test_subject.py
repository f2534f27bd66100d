"""What MODEL may be: a checkpoint or a name, with weights or not; and bad input, told in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from safetensors.torch import save_file
from support.page import check_structure, explained_by_name
from support.tiny_run import Tiny, images, train

from explainfix_ext import convert, explainsteer, fit_steering
from explainfix_ext.commands.webpage.page import report_page
from explainfix_ext.commands.webpage.run import explain
from explainfix_ext.commands.webpage.subject import ExplainConfig
from explainfix_ext.explain.spectra import Spectra
from explainfix_ext.training.checkpoint import load_weights
from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")


def test_model_by_name_with_data(run_explain, tmp_path):
    images(tmp_path / "some.npz")
    code, out, error = run_explain("tiny --init dct2@0.5 --data some.npz --batches 2 --device cpu --json --seed 3")
    assert code == 0, error
    found = json.loads(out)
    assert found["missing"] == {}
    assert (found["init"], found["epochs"], found["weights"]) == ("dct2@0.5", None, "random, seed 3")
    assert set(found["spectra"]) == {"filters", "saliency"}
    page = check_structure((tmp_path / "report.html").read_text())
    assert "none by explainfix" in page.text["network"]


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_weights_are_read(run_explain, tmp_path, suffix):
    model, path = Tiny(1, 3, 1), tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    code, out, error = run_explain(f"tiny --size 1x12x12 --classes 3 --weights w.{suffix} --device cpu --json")
    assert code == 0, error
    found = Spectra.from_json(json.dumps(json.loads(out)["spectra"]["filters"]))
    assert torch.equal(found.ed["0"], explainsteer(model).ed["0"])


def test_weights_of_a_converted_model_are_loaded_after_converting(checkpoints):
    path = checkpoints["dct2"].parent / "model.pt"
    found = explain(
        ExplainConfig(model="tiny", init="dct2", seed=7, weights=path, size="1x12x12", classes=3, device="cpu"), ""
    )
    network = convert_like(path)
    assert torch.equal(found.spectra["filters"].ed["0"], explainsteer(network).ed["0"])


def convert_like(path: Path) -> nn.Module:
    network = Tiny(1, 3, 1)
    convert(network, "dct2", seed=1)
    load_weights(network, path)
    return network


def test_init_is_that_of_the_weights(tmp_path):
    network = Tiny(1, 3, 1)
    convert(network, {"0": "psine", "*": "dct2"}, seed=3, density=0.5)  # the first has one input: it stays whole
    torch.save(network.state_dict(), tmp_path / "w.pt")
    found = explained_by_name(init="dct2", weights=tmp_path / "w.pt")
    assert torch.equal(found.spectra["filters"].ed["0"], explainsteer(network).ed["0"])
    assert found.as_dict()["init"] == "psine and dct2@0.5"
    text = report_page(found)
    assert "tiny, psine and dct2@0.5: ExplainFix report" in text
    convert(network := Tiny(1, 3, 1), "unchanged")
    torch.save(network.state_dict(), tmp_path / "w.pt")
    found = explained_by_name(init="dct2", weights=tmp_path / "w.pt")
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
    assert "not found: expected a file of Steering.save" in check_structure(report_page(found)).text["spectra"]
    pruned = prune_checkpoint(path, tmp_path / "o", PruneConfig(amount=0.5, epochs=0, batches=2), device="cpu")
    assert pruned["test"]["unpruned"].items() <= found.test.items()
    data = tmp_path / "images.npz"
    code, _, error = run(f"train --model tiny --data {data} --init {init} --steering {steering} --device cpu --out r")
    assert code == 2
    assert "s.safetensors" in error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Missing argument '.*'"),
        ("tiny --size 3x99999x99999", "size must be of at most 268,435,456 numbers, got 3x99999x99999"),
        ("tiny --classes 99999999999", "num_classes must be an integer from 1 to 65,536, got 99999999999"),
        ("no.pt", "no.pt not found: expected a checkpoint"),
        ("STATE", "model.pt is not a checkpoint of explainfix train: expected OUT/NETWORK/checkpoint.pt"),
        ("IMAGES", "images.npz cannot be read"),
        ("tinny", "model must be bottleneck, .*, got 'tinny'; did you mean tiny?"),
        ("runs/demo", "runs/demo not found: expected a checkpoint, OUT/NETWORK/checkpoint.pt of explainfix train"),
        ("timm:resnet1", "unknown timm model 'resnet1'; nearest: resnet"),
        ("CHECKPOINT --init dct2", "init is of a model's name, and MODEL is a file"),
        ("CHECKPOINT --weights STATE", "weights is of a model's name, and MODEL is a file"),
        ("CHECKPOINT --size 28", "size is of a model's name"),
        ("CHECKPOINT --data no.npz", "no.npz not found: expected an .npz file"),
        ("CHECKPOINT --batches 0", "batches must be at least 1, got 0"),
        ("CHECKPOINT --device gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("CHECKPOINT --html IMAGES", "images.npz is there, and is no report: choose another --html"),
        ("CHECKPOINT --html FOLDER", "is there, and is no report"),
        ("CHECKPOINT --html IMAGES/x.html", "html must be in a folder, .*images.npz is a file"),
        ("tiny --data IMAGES --size 28", "size is that of the data: leave it out, or data"),
        ("tiny --size big", "size must be PIXELS or CHANNELSxHEIGHTxWIDTH, such as 1x28x28, got 'big'"),
        ("tiny --size 0", "size must be PIXELS or"),
        ("tiny --classes 0", "classes must be at least 1, got 0"),
        ("tiny --seed -1", "seed must be from 0"),
        ("tiny --init dct3 --size 12", "unknown init 'dct3'; nearest: dct2"),
        ("tiny --weights no.pt --size 12", "no.pt not found"),
        ("tiny --weights no.safetensors --size 12", "no.safetensors not found"),
        ("tiny --weights IMAGES --size 12", "images.npz cannot be read"),
        ("tiny --weights STATE --size 12", "model.pt is of a converted model and this one is plain"),
        ("tiny --weights STATE --init dct2 --size 12", "model.pt does not fit the model: .*size mismatch"),
        ("timm:vit_tiny_patch16_224 --size 30", "cannot take images of 3x30x30"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run_explain, checkpoints, tmp_path, line, message):
    folder = checkpoints["dct2"].parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    places = {"CHECKPOINT": checkpoints["dct2"], "STATE": folder / "model.pt", "FOLDER": folder}
    places["IMAGES"] = folder.parents[1] / "images.npz"
    for word, place in places.items():
        line = line.replace(word, f'"{place}"')
    code, out, error = run_explain(line)
    assert (code, out) == (2, ""), error
    (told,) = error.splitlines()
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), told), told
    assert told.startswith("explainfix: ")
    assert not list(tmp_path.iterdir())
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_files_that_are_no_state_dict_are_told(run_explain, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "three.pt")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name, message in (("three.pt", "three.pt is no state_dict"), ("junk.safetensors", "cannot be read")):
        code, _, error = run_explain(f"tiny --weights {name} --size 1x12x12 --device cpu")
        assert code == 2
        assert message in error
    assert not (tmp_path / "report.html").exists()


def test_several_processes_are_refused(run_explain, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, _, error = run_explain("tiny")
    assert code == 2
    assert "explain runs in one process" in error
