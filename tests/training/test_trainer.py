"""The training loop: resumption to the last bit, accumulation, learning rate, what a network learns."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')

from support.dropout_run import CPU, StopAfter, assert_same, assert_same_training, cli, stripes

from explainfix_ext.training.checkpoint import load_checkpoint
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.runs import train_networks
from explainfix_ext.training.trainer import Trainer, WarmupCosine


@pytest.mark.parametrize(
    ("init", "options"),
    [("learned", {}), ("dct2", {}), ("dct2@0.5", {}), ("dct2", {"augment": "flip,noise,crop:8", "epoch_size": 40})],
)
def test_interrupted_training_resumes_bit_exactly(tmp_path, config, init, options):
    config = replace(config, init=init, **options)
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


def test_diverged_training_keeps_the_last_checkpoint(tmp_path, config):
    train_networks([config], tmp_path, device="cpu")
    before = (tmp_path / "learned" / "checkpoint.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1 of dct2: lower lr, got 1e"):
        train_networks([replace(config, init="dct2", lr=1e20)], tmp_path, device="cpu")
    assert (tmp_path / "learned" / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "dct2" / "checkpoint.pt").exists()


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


def test_losses_and_changed_images_are_the_configuration_s(config):
    data = load_dataset(config.data)
    trainer = Trainer(replace(config, augment="flip,crop:8", epoch_size=50), data, CPU)
    assert len(trainer.train_loader) == 3
    shapes = []
    trainer.model.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    trainer._train_epoch(0, Observer())
    assert shapes == [(16, 1, 8, 8)] * 3
    trainer.evaluate(data.val)
    assert shapes[-1] == (31, 1, 12, 12)  # whole, and as they are
    for options, message in (
        ({"augment": "crop:13"}, "augment crop:13 is larger than the images, which are 12x12"),
        ({"loss": "focal"}, "loss focal is for binary and multilabel data, got multiclass: take auto"),
        ({"epoch_size": 1}, "needs two training images at least, got 1 in all"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(replace(config, **options), data, CPU)
