"""Training: exact resumption after every kind of stop, checkpoints, accumulation, measures, and two processes."""

from __future__ import annotations

import gc
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')

from explainfix_ext import FixedConv2d, convert
from explainfix_ext._support.files import write_atomic
from explainfix_ext.training import costs, metrics, models
from explainfix_ext.training.checkpoint import load_checkpoint, load_weights, rng_state, set_rng_state
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.network import check_banks_alike, make_network
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.runs import train_networks
from explainfix_ext.training.trainer import Trainer, WarmupCosine

CPU = torch.device("cpu")


class Tiny(nn.Sequential):
    """A few fixed or learned filters, learned 1x1s, and dropout, which draws random numbers in training."""

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
            nn.Dropout(0.2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, num_classes),
        )


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch):
    monkeypatch.setitem(models.PRESETS, "tiny", Tiny)
    monkeypatch.setitem(
        models.PRESETS,
        "tiny_mask",
        lambda c, k, width: nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.Conv2d(4, k, 1)),
    )


def stripes(path: Path, classes: int = 3, width: int = 1) -> str:
    """A data set that a few filters learn: a class is the period of stripes. In MedMNIST's layout."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in (("train", 96), ("val", 31), ("test", 33)):
        label = rng.integers(0, classes, n)
        wave = np.sin(np.arange(12) * np.pi / (1 + label[:, None]))[:, None, :]
        arrays[f"{name}_images"] = (128 + 80 * wave + rng.normal(0, 20, (n, 12, 12))).clip(0, 255).astype(np.uint8)
        arrays[f"{name}_labels"] = label[:, None] if width == 1 else rng.integers(0, 2, (n, width))
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(model="tiny", data=stripes(tmp_path / "stripes.npz"), epochs=4, batch_size=16, lr=0.01)


class StopAfter(Observer):
    """Ctrl-C in the step after `epochs` epochs. Counts what it sees."""

    def __init__(self, epochs: int = 1000) -> None:
        self.left, self.steps, self.records = epochs, 0, []

    def step(self) -> None:
        self.steps += 1
        if self.left == 0:
            raise KeyboardInterrupt

    def epoch(self, record) -> None:
        self.left -= 1
        self.records.append(record)


def assert_same(a, b, path="state"):
    """Equal to the last bit, all the way down."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{path}[{i}]")
    else:
        assert a == b, path


def assert_same_training(a: Path, b: Path) -> None:
    """Two checkpoints, but for the times in their history."""
    states = [load_checkpoint(path) for path in (a, b)]
    for state in states:
        for record in state["history"]:
            del record["train_seconds"], record["step_seconds"]
    assert_same(*states)


# Resumption ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["learned", "dct2", "dct2@0.5"])
def test_interrupted_training_resumes_bit_exactly(tmp_path, config, init):
    config = replace(config, init=init)
    train_networks([config], tmp_path / "straight", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        train_networks([config], tmp_path / "stopped", device="cpu", observer=StopAfter(2))
    checkpoint = tmp_path / "stopped" / init / "checkpoint.pt"
    assert load_checkpoint(checkpoint)["epoch"] == 2
    checkpoint.with_name("checkpoint.pt.tmp").write_bytes(b"killed while saving")
    torch.rand(7)  # the process that resumes is in another state
    train_networks([config], tmp_path / "stopped", device="cpu", resume=True)
    assert_same_training(tmp_path / "straight" / init / "checkpoint.pt", checkpoint)
    assert len((checkpoint.parent / "log.jsonl").read_text().splitlines()) == 4


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
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"checkpoint.pt is not a checkpoint of explainfix train"):
        train_networks([config], tmp_path / "out", device="cpu", resume=True)


def cli(*arguments: str, **options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "explainfix_ext.cli", *arguments]
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )


def wait_for_epochs(process: subprocess.Popen, log: Path, epochs: int) -> None:
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= epochs):
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1]


def test_killed_process_resumes_bit_exactly(tmp_path):
    data = stripes(tmp_path / "stripes.npz")
    # So many epochs that a signal sent after the fifth cannot come too late, however busy the machine is.
    options = ["train", "--data", data, "--init", "dct2", "--epochs", "40", "--batch-size", "8", "--device", "cpu"]
    straight = cli(*options, "--out", str(tmp_path / "straight"))
    options += ["--out", str(tmp_path / "stopped"), "--resume"]
    checkpoint = tmp_path / "stopped" / "dct2" / "checkpoint.pt"
    for stop, code, epochs in ((signal.SIGKILL, -signal.SIGKILL, 2), (signal.SIGINT, 130, 5)):
        stopped = cli(*options)
        wait_for_epochs(stopped, checkpoint.with_name("log.jsonl"), epochs)
        stopped.send_signal(stop)
        error = stopped.communicate()[1]
        assert stopped.returncode == code
        assert epochs <= load_checkpoint(checkpoint)["epoch"] < 40
    assert error.splitlines()[-1] == f"interrupted; to go on: {shlex.join(['explainfix', *options])}"
    assert "Traceback" not in error
    for process in (straight, cli(*options)):
        error = process.communicate()[1]
        assert process.returncode == 0, error
    assert_same_training(tmp_path / "straight" / "dct2" / "checkpoint.pt", checkpoint)


# Checkpoints --------------------------------------------------------------------------------------------------------


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new, but not who")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old"


def test_random_states_return():
    state = rng_state(CPU)
    draws = [(torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) for _ in "ab"]
    set_rng_state(state, CPU)
    again = [(torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) for _ in "ab"]
    assert draws == again


def test_model_file_loads_into_a_fresh_network(tmp_path, config):
    config = replace(config, init="dct2", epochs=1)
    train_networks([config], tmp_path, device="cpu")
    for name in ("model.pt", "checkpoint.pt"):
        model = Tiny(1, 3)
        convert(model, "dct2", seed=99)
        load_weights(model, tmp_path / "dct2" / name)
        assert_same(dict(model.state_dict()), load_checkpoint(tmp_path / "dct2" / "model.pt"))


def test_plain_and_converted_checkpoints_say_convert_first(tmp_path):
    plain, fixed = Tiny(1, 3), Tiny(1, 3)
    convert(fixed, "dct2")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    torch.save(fixed.state_dict(), tmp_path / "fixed.pt")
    with pytest.raises(ValueError, match=r"fixed.pt is of a converted model and this one is plain .*convert first"):
        load_weights(plain, tmp_path / "fixed.pt")
    with pytest.raises(ValueError, match=r"plain.pt is of a plain model and this one is converted .*convert first"):
        load_weights(fixed, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"plain.pt does not fit the model.*size mismatch"):
        load_weights(Tiny(1, 4), tmp_path / "plain.pt")


# Configuration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or positive"),
        ({"seed": -1}, "seed must be from 0"),
        ({"amp": "fp8"}, "amp must be one of off, bf16, fp16, got 'fp8'"),
        ({"init": "dct3"}, "unknown init 'dct3'; nearest: dct2"),
        ({"init": "dct2@0"}, r"density in init dct2@DENSITY must be in \(0, 1\], got 0"),
        ({"init": "dct2@x"}, "init must be NAME or NAME@DENSITY such as dct2@0.1, got 'dct2@x'"),
        ({"init": "learned@0.1"}, "learned has no density"),
    ],
)
def test_bad_configurations_are_told(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


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


def test_diverged_training_keeps_the_last_checkpoint(tmp_path, config):
    train_networks([config], tmp_path, device="cpu")
    before = (tmp_path / "learned" / "checkpoint.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1 of dct2: lower lr, got 1e"):
        train_networks([replace(config, init="dct2", lr=1e20)], tmp_path, device="cpu")
    assert (tmp_path / "learned" / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "dct2" / "checkpoint.pt").exists()


# The loop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["bottleneck", "basicblock", "unet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_presets_fit_their_images(preset, channels):
    size = 64 if preset == "unet" else 28
    model = models.build_model(preset, channels, 5).eval()
    shape = (2, 5, size, size) if preset == "unet" else (2, 5)
    assert model(torch.zeros(2, channels, size, size)).shape == shape
    assert 0.2e6 < costs.learned_parameters(model) < 0.7e6


def test_library_models_take_any_number_of_channels():
    for name in ("torchvision:mobilenet_v3_small", "timm:resnet10t", "smp:fpn/resnet18"):
        model = models.build_model(name, 2, 5).eval()
        assert models.logits_of(model(torch.zeros(1, 2, 64, 64))).shape[:2] == (1, 5)
    with pytest.raises(ValueError, match="unknown smp encoder 'resnet17'; nearest: resnet18"):
        models.build_model("smp:unet/resnet17", 1, 1)
    with pytest.raises(ValueError, match="unknown smp architecture 'unot'; nearest: unet"):
        models.build_model("smp:unot/resnet18", 1, 1)
    with pytest.raises(ValueError, match="unknown torchvision model 'resnet19'; nearest: resnet18"):
        models.build_model("torchvision:resnet19", 1, 1)


def test_networks_start_alike_and_see_the_same_images(config):
    data = load_dataset(config.data)
    trainers = [Trainer(replace(config, init=init), data, CPU) for init in ("learned", "dct2", "ghaar")]
    for trainer in trainers[1:]:
        assert torch.equal(trainer.network[2].weight, trainers[0].network[2].weight)
        for epoch in (0, 1):
            for one in (trainer, trainers[0]):
                one.sampler.set_epoch(epoch)
            assert_same(list(trainer.train_loader), list(trainers[0].train_loader))


def test_accumulated_steps_equal_one_large_step(config):
    data = load_dataset(config.data)
    trained = []
    for batch_size, accumulate in ((32, 1), (8, 4)):
        trainer = Trainer(replace(config, batch_size=batch_size, accumulate=accumulate), data, CPU)
        trainer.network[3] = nn.Identity()  # dropout would draw otherwise
        trainer._train_epoch(0, Observer())
        trained.append(trainer.network)
    for a, b in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_learning_rate_warms_up_and_falls_to_zero():
    factor = WarmupCosine(200)
    values = [factor(update) for update in range(201)]
    assert values[0] == 0.1
    assert values[9] == values[10] == 1.0
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[200] == 0.0


@pytest.mark.parametrize(
    ("classes", "width", "init", "options"),
    [
        (2, 1, "dct2", {}),
        (2, 3, "learned", {}),
        (3, 1, "dct2", {"amp": "bf16"}),
        (3, 1, "dct2", {"pointwise": True}),
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


def test_learned_stripes_are_told_apart(tmp_path, config):
    runs = train_networks(
        [replace(config, epochs=8, init=i) for i in ("learned", "dct2")], tmp_path / "o", device="cpu"
    )["runs"]
    assert all(run["test"]["accuracy"] > 0.9 for run in runs)
    assert runs[1]["learned_parameters"] == runs[0]["learned_parameters"] - 8 * 9


def test_segmentation_learns_a_threshold(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "n.npz", images=images, masks=(images > 128).astype(np.uint8))
    config = TrainConfig(model="tiny_mask", data=f"bbbc038:{tmp_path / 'n.npz'}", epochs=10, batch_size=4, lr=0.05)
    results = train_networks([config], tmp_path / "out", device="cpu")
    assert results["metric"] == "dice"
    assert results["runs"][0]["test"]["dice"] > 0.95


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


# Measures -----------------------------------------------------------------------------------------------------------


def test_bytes_kept_counts_activations_once_and_no_filters():
    x = torch.randn(2, 4, 8, 8)
    conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    forward = lambda model: model(x).sum()  # noqa: E731
    assert costs.bytes_kept(conv, forward) == 2 * x.nbytes  # x, and the ReLU's output, which the second conv shares
    convert(conv, "dct2", pointwise=False)
    assert costs.bytes_kept(conv, forward) == x.nbytes  # the ReLU's output
    alone = nn.Sequential(FixedConv2d(4, 4, 3, padding=1, init="ghaar", seed=0))
    assert costs.bytes_kept(alone, forward) == 0


def test_bytes_kept_lets_go_of_what_it_counted():
    """A sigmoid keeps its own output: given back as it is, it would hold its graph, and that would hold it."""
    seen = []

    def loss(model):
        output = torch.sigmoid(model(torch.randn(2, 3)))
        seen.append(weakref.ref(output.untyped_storage()))
        return output.sum()

    costs.bytes_kept(torch.nn.Linear(3, 3), loss)
    gc.collect()
    assert seen[0]() is None


def test_bytes_kept_leaves_the_model_alone():
    model = models.build_model("bottleneck", 1, 3).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    costs.bytes_kept(model, lambda m: m(torch.randn(2, 1, 28, 28)).sum())
    assert not model.training
    assert_same(before, dict(model.state_dict()))


def test_other_filters_on_another_rank_are_told(config, monkeypatch):
    model, report = make_network(replace(config, init="dct2"), load_dataset(config.data))
    assert len(report.converted) == 1
    check_banks_alike(model)
    other, _ = make_network(replace(config, init="dct2", seed=1), load_dataset(config.data))
    marks = [{"0": m[0].bank.fingerprint()} for m in (model, other)]
    monkeypatch.setattr("explainfix_ext.training.distributed.gather", lambda value: marks)
    with pytest.raises(RuntimeError, match="0 has other fixed filters on rank 1 than on rank 0"):
        check_banks_alike(model)


# Two processes ------------------------------------------------------------------------------------------------------


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
        assert alone.evaluate(dataset.test) == pytest.approx(run["test"], rel=1e-4)  # 33 images: ranks take 17 and 16
    resumed = torchrun(*options, "--out", str(tmp_path / "out"), "--json", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert [r["test"] for r in json.loads(resumed.stdout)["runs"]] == [r["test"] for r in results["runs"]]
    single = cli(*options, "--out", str(tmp_path / "out"), "--resume")
    assert "world_size = 2, now it is 1" in single.communicate()[1]
    assert single.returncode == 2
