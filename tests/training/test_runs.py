"""Several networks in one call: what is refused, what is not trained again, whole results; and two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')

from support.dropout_run import CPU, StopAfter, cli, stripes

from explainfix_ext.training.checkpoint import load_checkpoint, load_weights
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.final_scores import final_scores
from explainfix_ext.training.network import make_network
from explainfix_ext.training.runs import train_networks
from explainfix_ext.training.trainer import Trainer


def test_finished_run_is_not_trained_again(tmp_path, config):
    first = train_networks([config], tmp_path / "out", device="cpu")
    observer = StopAfter()
    both = train_networks(
        [config, replace(config, init="dct2")], tmp_path / "out", device="cpu", resume=True, observer=observer
    )
    assert observer.steps == 4 * 6  # dct2's
    assert [run["network"] for run in both["runs"]] == ["learned", "dct2"]
    assert both["runs"][0]["test"] == first["runs"][0]["test"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == both


def test_results_are_not_overwritten_without_resume(tmp_path, config):
    train_networks([config], tmp_path / "out", device="cpu")
    with pytest.raises(
        FileExistsError, match=r"learned/checkpoint.pt is there: add --resume .* or choose another --out"
    ):
        train_networks([replace(config, init="dct2"), config], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out" / "dct2").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 5),
        ("lr", 0.02),
        ("seed", 1),
        ("batch_size", 8),
        ("data", "mnist5k"),
        ("model", "bottleneck"),
        ("limit", 9),
    ],
)
def test_resuming_another_configuration_names_the_field(tmp_path, config, field, value):
    config = replace(config, epochs=1)
    train_networks([config], tmp_path / "out", device="cpu")
    with pytest.raises(ValueError, match=f"checkpoint.pt was made with {field} = .*, now it is {value}"):
        train_networks([replace(config, **{field: value})], tmp_path / "out", device="cpu", resume=True)


def test_damaged_checkpoint_is_named(tmp_path, config):
    train_networks([config], tmp_path / "out", device="cpu")
    path = tmp_path / "out" / "learned" / "checkpoint.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint.pt cannot be read .*expected a checkpoint"):
            train_networks([config], tmp_path / "out", device="cpu", resume=True)
    path.write_bytes(whole)
    state = load_checkpoint(path)
    for changed, message in (
        ({"config": [1]}, "is damaged: its configuration must be a dict, got a list"),
        ({"optimizer": {"state": 3}}, "cannot be resumed from: "),
        ({"rng": []}, "cannot be resumed from: "),
    ):
        torch.save(state | changed, path)
        with pytest.raises(ValueError, match=f"checkpoint.pt {message}"):
            train_networks([config], tmp_path / "out", device="cpu", resume=True)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"checkpoint.pt is not a checkpoint of explainfix train"):
        train_networks([config], tmp_path / "out", device="cpu", resume=True)


def test_bad_runs_are_told_before_anything_is_written(tmp_path, config):
    for bad, message in (
        (replace(config, model="unet"), r"model 'unet' gives \(1, 3, 12, 12\) for an image of 1x12x12"),
        (replace(config, model="torchvision:vgg11"), "cannot take images of 1x12x12"),
        (replace(config, model="timm:resnet1"), "unknown timm model 'resnet1'; nearest: resnet"),
        (replace(config, amp="fp16"), "amp fp16 needs a CUDA device"),
        (replace(config, limit=1), "needs two training images at least, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            train_networks([bad], tmp_path / "out", device="cpu")
    with pytest.raises(ValueError, match="each init must be given once, got learned twice"):
        train_networks([config, config], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("classes", "width", "init", "options"),
    [
        (2, 1, "dct2", {}),
        (2, 3, "learned", {}),
        (3, 1, "dct2", {"amp": "bf16"}),
        (3, 1, "dct2", {"pointwise": True}),
        (2, 3, "hadamard@0.5", {}),
        (3, 1, "auto", {}),
        (3, 1, "ghaar4_s1@0.5", {"learn_coeff": True}),
        (3, 1, "learned", {"limit": 20, "accumulate": 2}),
    ],
)
def test_every_kind_of_run_gives_whole_results(tmp_path, config, classes, width, init, options):
    data = stripes(tmp_path / "other.npz", classes, width)
    config = replace(config, data=data, init=init, epochs=2, **options)
    results = train_networks([config], tmp_path / "out", device="cpu")
    (run,) = results["runs"]
    assert results["metric"] == ("accuracy" if classes == 3 else "auroc")
    assert 0 <= run["test"][results["metric"]] <= 1
    assert np.isfinite([run["test"]["loss"], run["step_seconds"]]).all()
    assert run["checkpoint_bytes"] == (tmp_path / "out" / config.label / "model.pt").stat().st_size
    assert run["kept_bytes"] > 0
    assert run["config"] == asdict(config)
    lines = (tmp_path / "out" / config.label / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    json.dumps(results)


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "explainfix_ext.cli", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_two_processes_train_one_network_and_score_it_right(tmp_path):
    data = stripes(tmp_path / "stripes.npz")
    options = [
        "train",
        "--data",
        data,
        "--init",
        "learned,dct2",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--device",
        "cpu",
    ]
    done = torchrun(*options, "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)  # one rank prints
    assert results["hardware"]["processes"] == 2
    dataset = load_dataset(data)
    for run in results["runs"]:
        config = TrainConfig(**run["config"])
        assert config.world_size == 2
        network, _ = make_network(config, dataset)
        load_weights(network, tmp_path / "out" / run["network"] / "model.pt")
        alone = Trainer(config, dataset, CPU)
        alone.network = network
        scores, confusion = final_scores(alone)
        assert scores == pytest.approx(run["test"], rel=1e-4)  # 33 images: ranks take 17 and 16
        assert confusion == run["confusion"]
    resumed = torchrun(*options, "--out", str(tmp_path / "out"), "--json", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert [r["test"] for r in json.loads(resumed.stdout)["runs"]] == [r["test"] for r in results["runs"]]
    single = cli(*options, "--out", str(tmp_path / "out"), "--resume")
    assert "world_size = 2, now it is 1" in single.communicate()[1]
    assert single.returncode == 2
