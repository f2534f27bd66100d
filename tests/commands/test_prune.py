"""`explainfix prune`: from a checkpoint to a pruned, verified and fine-tuned network, its files, and bad input."""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')

from support.tiny_run import CPU, Tiny, images, train

import explainfix_ext as efx
from explainfix_ext import apply_plan, channelprune
from explainfix_ext.prune.cut.layers import nonzero_filters, prunable_layers
from explainfix_ext.training import data, models
from explainfix_ext.training.checkpoint import load_weights
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.network import make_network
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.prune_checkpoint import FILES, PruneConfig, prune_checkpoint
from explainfix_ext.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
    monkeypatch.setitem(models.PRESETS, "tiny", Tiny)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", Tiny)
        return train(tmp_path_factory.mktemp("dct2"), init="dct2")


@pytest.fixture
def run(run):
    """Run `explainfix prune` with a line of arguments, as `run` of all tests does."""
    return lambda line: run(f"prune {line}")


def rebuilt(out: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The fine-tuned network, made from its files; and results.json."""
    results = json.loads((out / "results.json").read_text())
    config = TrainConfig(**results["config"])
    network, _ = make_network(config, load_dataset(config.data, config.seed))
    load_weights(apply_plan(network, json.loads((out / "plan.json").read_text())), out / "model.pt")
    return network, results


LINE = "--amount 0.8 --granularity channel --epochs 2 --batches 3 --device cpu --out"


def test_command_prunes_verifies_and_fine_tunes(run, checkpoint, tmp_path):
    code, out, error = run(f"{checkpoint} {LINE} out")
    assert code == 0, error
    assert "\nscoring filters\n" in f"\n{error}"  # a line a stage, no bars, where stderr is no terminal
    assert "dct2  epoch 2/2" in error
    for words in (
        "channels, in x out",
        "nonzero filters",
        "parameters",
        "multiply-adds",
        "verified: equals the masked",
    ):
        assert words in out, words
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    costs = results["report"]["layers"]["6"]
    before, after = (f"{costs[side]['in_channels']}x{costs[side]['out_channels']}" for side in ("before", "after"))
    assert before != after
    assert re.search(rf"6 .* {before} -> {after} ", out)
    for stage, name in (("unpruned", "unpruned"), ("pruned", "pruned"), ("fine_tuned", "fine-tuned, 2 epochs")):
        assert re.search(rf"{name} .* {results['test'][stage]['accuracy']:.4f} ", out), name
    assert "some channels stay (output of the model): 14" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES} - {"checkpoint.pt"}
    assert all(f"out/{name}" in out for name in ("model.pt", "plan.json", "kept.png", "results.json"))
    network = make_network(TrainConfig(**results["config"]), load_dataset(results["config"]["data"]))[0]
    with pytest.raises(RuntimeError, match=r"efx\.apply_plan\(model, plan\) comes first"):
        network.load_state_dict(torch.load("out/model.pt"))
    with pytest.raises(ValueError, match=r"does not fit .*efx\.apply_plan\(network, json\.load\(open\('out/plan\.json"):
        load_weights(network, Path("out/model.pt"))
    code, _, error = run(f"out/model.pt {LINE} again")
    assert code == 2
    assert "out/model.pt is not a checkpoint" in error
    assert "it is pruned: efx.apply_plan(" in error
    (printed,) = [line.partition(": ")[2] for line in out.splitlines() if "apply_plan" in line]
    network = make_network(TrainConfig(**results["config"]), load_dataset(results["config"]["data"]))[0]
    eval(printed, {"efx": efx, "json": json, "torch": torch, "network": network})
    assert (tmp_path / "out" / "kept.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 2


def test_json_is_all_of_stdout_and_the_same_every_time(run, checkpoint, tmp_path):
    found = []
    for folder in ("first", "second"):
        code, out, error = run(f"{checkpoint} {LINE} {folder} --json")
        assert code == 0, error
        found.append(json.loads(out))
        assert found[-1] == json.loads((tmp_path / folder / "results.json").read_text())
    results, again = found
    assert results["test"] == again["test"]
    assert results["prune"] == vars(
        PruneConfig(amount=0.8, granularity="channel", batches=3, epochs=2, lr=0.01, seed=0)
    )
    assert results["report"]["verify_error"] < 1e-5
    assert results["checkpoint"] == {"path": str(checkpoint), "epochs": 2}
    assert results["learned_parameters"][1] < results["learned_parameters"][0]
    assert len(results["history"]) == 2
    assert {"hardware", "versions", "data", "metric", "config"} <= results.keys()


@pytest.mark.parametrize(
    ("trained", "options"),
    [
        ({"init": "learned"}, {}),
        ({"init": "learned", "memory": "recompute"}, {"granularity": "channel"}),
        ({"init": "dct2"}, {"granularity": "channel", "bn_bias": "fold"}),
        ({"init": "ghaar4_s1", "learn_coeff": True}, {}),
        ({"init": "dct2", "pointwise": True, "classes": 2}, {"scope": "layer"}),
        ({"init": "learned", "classes": 2}, {"structured": False, "criterion": "l1"}),
    ],
)
def test_saved_network_scores_as_reported_and_what_is_pruned_stays_so(tmp_path, trained, options):
    checkpoint = train(tmp_path, **trained)
    config = PruneConfig(amount=0.7, epochs=1, batches=2, **options)
    returned = prune_checkpoint(checkpoint, tmp_path / "out", config, device="cpu")
    network, results = rebuilt(tmp_path / "out")
    assert results == json.loads(json.dumps(returned))
    settings = TrainConfig(**results["config"])
    dataset = load_dataset(settings.data, settings.seed)
    again = Trainer(settings, dataset, CPU, network=network).evaluate(dataset.test)
    assert again == pytest.approx(results["test"]["fine_tuned"], rel=1e-6)
    assert again != results["test"]["pruned"]
    layers = results["report"]["layers"]
    zeros = {name: int(nonzero_filters(layer).sum()) for name, layer in prunable_layers(network).items()}
    assert zeros == {name: layers[name]["after"]["nonzero"] for name in zeros}
    assert sum(zeros.values()) < 0.5 * sum(layers[name]["before"]["filters"] for name in zeros)
    assert (results["report"]["verify_error"] is None) == (not config.structured)


def test_without_fine_tuning_the_pruned_network_is_saved(run, checkpoint, tmp_path):
    code, out, error = run(f"{checkpoint} --amount 0.5 --criterion l1 --epochs 0 --device cpu --out out")
    assert code == 0, error
    assert "fine-tuned" not in out
    network, results = rebuilt(tmp_path / "out")
    assert results["test"]["fine_tuned"] is None
    assert not (tmp_path / "out" / "log.jsonl").exists()
    config = TrainConfig(**results["config"])
    dataset = load_dataset(config.data)
    assert Trainer(config, dataset, CPU, network=network).evaluate(dataset.test) == results["test"]["pruned"]


def test_images_are_those_of_the_training_whatever_the_seed(tmp_path, monkeypatch):
    checkpoint = train(tmp_path, init="dct2", limit=40, seed=3)
    seeds, seen = [], []
    monkeypatch.setattr(data, "load_dataset", lambda spec, seed: seeds.append(seed) or load_dataset(spec, seed))
    monkeypatch.setattr(Observer, "start", lambda self, config, steps, epoch: seen.append((config.seed, steps)))
    monkeypatch.setattr(Observer, "stage", lambda self, name, steps: steps > 1 and seen.append(steps))
    config = PruneConfig(amount=0.5, epochs=1, seed=7)
    results = prune_checkpoint(checkpoint, tmp_path / "out", config, device="cpu")
    assert seeds == [3]
    assert seen == [40 // 15, (7, 40 // 15)]  # fewer batches than asked for: all of them
    assert results["data"]["train"] == 40


def test_data_that_moved_can_be_named(run, tmp_path):
    checkpoint = train(tmp_path / "a", init="dct2")
    (tmp_path / "a" / "images.npz").rename(tmp_path / "moved.npz")
    line = f"{checkpoint} --amount 0.5 --criterion l1 --epochs 0 --device cpu --out out"
    code, _, error = run(line)
    assert code == 2
    assert "images.npz not found" in error
    assert error.endswith("; if the images of the training are elsewhere, give --data\n")
    code, _, error = run(f"{line} --data moved.npz")
    assert code == 0, error
    assert rebuilt(tmp_path / "out")[1]["config"]["data"] == "moved.npz"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Missing argument '.*'"),
        ("CHECKPOINT", "Missing option '--out'"),
        ("no.pt --out o", "no.pt not found: expected a checkpoint"),
        ("MODEL --out o", "model.pt is not a checkpoint of explainfix train: expected OUT/NETWORK/checkpoint.pt"),
        ("IMAGES --out o", "images.npz cannot be read"),
        ("CHECKPOINT --out o --amount 1", "amount must be in [0, 1), got 1.0"),
        ("CHECKPOINT --out o --amount nan", "amount must be in [0, 1), got nan"),
        ("CHECKPOINT --out o --amount most", "Invalid value for '--amount'"),
        (
            "CHECKPOINT --out o --amount 0 --criterion l1",
            "nothing to prune: 0.0% of the filters are zero, and amount is 0.0%",
        ),
        ("CHECKPOINT --out o --criterion l3", "criterion must be one of explainfix, taylor, .*, got 'l3'"),
        ("CHECKPOINT --out o --scope net", "scope must be one of global, layer, got 'net'"),
        ("CHECKPOINT --out o --granularity row", "granularity must be one of filter, channel, got 'row'"),
        ("CHECKPOINT --out o --bn-bias no", "bn_bias must be one of keep, drop, fold, got 'no'"),
        ("CHECKPOINT --out o --criterion nisp --unstructured", "criterion 'nisp' .* needs structured=True"),
        ("CHECKPOINT --out o --epochs -1", "epochs must be at least 0, got -1"),
        ("CHECKPOINT --out o --batches 0", "batches must be at least 1, got 0"),
        ("CHECKPOINT --out o --lr 0", "lr must be positive, got 0.0"),
        ("CHECKPOINT --out o --seed -1", "seed must be from 0"),
        ("CHECKPOINT --out o --device gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("CHECKPOINT --out o --data no.npz", "no.npz not found: expected an .npz file"),
        ("CHECKPOINT --out IMAGES", "out must be a folder, .*images.npz is a file"),
        ("CHECKPOINT --out FOLDER", "checkpoint.pt is there: choose another --out"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, checkpoint, tmp_path, line, message):
    folder = checkpoint.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    places = {"CHECKPOINT": checkpoint, "MODEL": folder / "model.pt", "FOLDER": folder}
    places["IMAGES"] = folder.parents[1] / "images.npz"
    code, out, error = run(" ".join(str(places.get(word, word)) for word in line.split()))
    assert (code, out) == (2, "")
    (told,) = error.splitlines()
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), told), told
    assert told.startswith("explainfix: ")
    assert not list(tmp_path.iterdir())
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_checkpoints_that_do_not_fit_are_told(tmp_path, checkpoint, monkeypatch):
    other = images(tmp_path / "two.npz", classes=2)
    with pytest.raises(ValueError, match=r"checkpoint.pt does not fit the model: .*size mismatch"):
        prune_checkpoint(checkpoint, tmp_path / "out", PruneConfig(), data=other, device="cpu")
    state = torch.load(checkpoint)
    torch.save(state | {"config": state["config"] | {"warp": 9}}, tmp_path / "newer.pt")
    with pytest.raises(ValueError, match=r"newer.pt is of another version .* its configuration has 'warp'"):
        prune_checkpoint(tmp_path / "newer.pt", tmp_path / "out", PruneConfig(), device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="prune runs in one process"):
        prune_checkpoint(checkpoint, tmp_path / "out", PruneConfig(), device="cpu")
    assert not (tmp_path / "out").exists()


def test_diverging_fine_tuning_ends_with_exit_code_1(run, checkpoint, tmp_path):
    code, out, error = run(f"{checkpoint} --criterion l1 --epochs 1 --lr 1e30 --device cpu --out out")
    assert (code, out) == (1, "")
    assert "the loss became nan in epoch 1 of dct2: lower lr, got 1e+30" in error.splitlines()[-1]
    assert (tmp_path / "out" / "plan.json").exists()
    assert not (tmp_path / "out" / "model.pt").exists()


# The picture --------------------------------------------------------------------------------------------------------


def test_picture_has_a_row_for_each_of_many_layers(tmp_path):
    deep = nn.Sequential(nn.Conv2d(1, 4, 1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(120)))
    report = channelprune(deep, torch.randn(1, 1, 4, 4), amount=0.5, criterion="l1", dry_run=True)
    report.plot(tmp_path / "kept.png")
    width, height = struct.unpack(">II", (tmp_path / "kept.png").read_bytes()[16:24])
    assert height / 120 > 20  # pixels a row: names of 7 points are 12 high
    assert width < height


def test_picture_without_matplotlib_is_told(monkeypatch, tmp_path):
    report = channelprune(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 4, 4), amount=0.5, criterion="l1")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="a picture needs matplotlib: pip install"):
        report.plot(tmp_path / "kept.png")
