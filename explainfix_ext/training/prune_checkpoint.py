"""Prunes a trained network, verifies it, fine-tunes it, and tests it at every stage: what `explainfix prune` does.

It writes in OUT: `plan.json` and `kept.png` (before fine-tuning), `log.jsonl` (one line per epoch of it), `model.pt`
(the state_dict, at the end) and `results.json`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support import machine
from explainfix_ext._support.files import check_writable, locked, write_atomic
from explainfix_ext._support.pictures import check_drawable
from explainfix_ext._support.text import first_line
from explainfix_ext.prune import PruneReport, apply_plan, channelprune, keep_zeros
from explainfix_ext.prune.score.criteria import CRITERIA
from explainfix_ext.prune.settings import check_amount, check_choice, default_granularity

from . import costs, distributed, metrics
from .checkpoint import load_weights, training_of
from .config import TrainConfig
from .data import dataset_of
from .network import load_network, make_network
from .observer import Observer
from .runs import describe
from .trainer import Trainer

# checkpoint.pt exists only while fine-tuning runs.
FILES = ("checkpoint.pt", "model.pt", "plan.json", "kept.png", "log.jsonl", "results.json")


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Describes how a checkpoint is pruned and fine-tuned.

    Attributes:
        amount, scope, granularity, weigh, structured, bn_bias: arguments of `channelprune`.
        criterion: a name of `channelprune`'s criteria.
        batches: how many batches of training images filters are scored on.
        epochs: epochs of fine-tuning; 0 for none.
        lr: the highest learning rate of fine-tuning; None takes the checkpoint's.
        seed: seed for the image order and for criterion random; None takes the checkpoint's.

    Raises:
        ValueError: a value is out of range; the message names it, what was expected and what came.
    """

    amount: float = 0.9
    criterion: str = "explainfix"
    scope: str = "global"
    granularity: str | None = None
    weigh: str = "score"
    structured: bool = True
    bn_bias: str = "drop"
    batches: int = 20
    epochs: int = 5
    lr: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_amount(self.amount)
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {self.criterion!r}")
        for name in ("scope", "granularity", "weigh", "bn_bias"):
            if (value := getattr(self, name)) is not None:
                check_choice(name, value)
        for name, least in (("batches", 1), ("epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def prune_checkpoint(
    checkpoint: Path,
    out: Path,
    config: PruneConfig,
    *,
    data: str | None = None,
    device: str = "auto",
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Prunes the network of a checkpoint that `train_networks` wrote, fine-tunes it, and writes OUT/results.json.

    Learned filters that pruning set to zero stay zero in fine-tuning.

    Args:
        checkpoint: OUT/NETWORK/checkpoint.pt of a training run.
        out: the folder that everything is written into; it must not hold a former result.
        config: how to prune and fine-tune.
        data: a data set that `load_dataset` accepts; None takes the one of the training. It is split by the seed of
            the training, so that the test images stay unseen.
        device: "auto", "cpu", "cuda" or "cuda:N".
        observer: is told what happens; None tells nobody.

    Returns:
        What results.json holds: the report of `channelprune`, the configurations, test scores of the network unpruned,
        pruned and fine-tuned (None if there was no fine-tuning), the data set, the hardware and versions.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: the input is bad, another process writes into `out`, there is
            nothing to prune, or verifying failed; nothing has been written then.
        FloatingPointError: the loss of fine-tuning is no longer finite.
        OSError: the disk is full.

    Example, after `explainfix demo --out runs/demo`:
        checkpoint = Path("runs/demo/auto+pointwise/checkpoint.pt")
        results = prune_checkpoint(checkpoint, Path("runs/pruned"), PruneConfig(amount=0.9))
        print(results["test"]["fine_tuned"]["accuracy"])

    `load_pruned` makes the pruned network from its files.
    """
    _check_folder(out)
    check_drawable()
    with locked(out):
        _check_folder(out)  # again: a process that had it locked may just have finished
        return _prune_checkpoint(checkpoint, out, config, data, device, observer or Observer())


def _prune_checkpoint(
    checkpoint: Path, out: Path, config: PruneConfig, data: str | None, device: str, observer: Observer
) -> dict[str, Any]:
    start = time.perf_counter()
    if distributed.world_size() > 1:
        raise ValueError("prune runs in one process: start it without torchrun")
    place = distributed.choose_device(device)
    trained, epochs_done = training_of(checkpoint, data)
    tuning = _fine_tuning(trained, config, place)
    observer.stage(f"reading {trained.data}", 1)
    images = dataset_of(trained)
    network, _ = load_network(trained, images, checkpoint)
    config = dataclasses.replace(config, granularity=config.granularity or default_granularity(network))

    whole = Trainer(tuning, images, place, network=network)
    report = _pruned(whole, config, observer)
    assert report.model is not None
    small = Trainer(tuning, images, place, network=report.model)
    observer.stage("testing", 1)
    scores = {"unpruned": whole.evaluate(images.test), "pruned": small.evaluate(images.test)}
    tuned = _fine_tuned(small, report, config.epochs, out, observer)
    results = {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - start,
        "checkpoint": {"path": str(checkpoint), "epochs": epochs_done},
        "config": vars(trained),
        "prune": vars(dataclasses.replace(config, lr=tuning.lr, seed=tuning.seed)),
        "data": describe(images),
        "metric": metrics.PRIMARY[images.task],
        "test": scores | {"fine_tuned": tuned},
        "learned_parameters": [costs.learned_parameters(trainer.network) for trainer in (whole, small)],
        "report": report.as_dict(),
        "history": small.history,
        "hardware": machine.hardware(place),
        "versions": machine.versions(),
    }
    _write(out / "results.json", json.dumps(results, indent=1))
    return results


def load_pruned(weights: Path, data: str | None = None) -> tuple[nn.Module, tuple[int, ...]]:
    """Makes the pruned network from OUT/model.pt and what lies beside it: plan.json and results.json.

    Args:
        weights: the path of model.pt.
        data: where the training's data set is now; None takes the place that it had.

    Returns:
        The network, and the shape of an image, or a signal, of those that it was trained on.

    Raises:
        ValueError, FileNotFoundError: a file is not there, is damaged, or does not fit the others.
    """
    plan, results = (_read(weights.with_name(name)) for name in ("plan.json", "results.json"))
    source = str(weights.with_name("results.json"))
    trained = TrainConfig.from_saved(results.get("config"), source)
    images = dataset_of(dataclasses.replace(trained, data=data or trained.data))
    network, _ = make_network(trained, images, to_load=True)
    load_weights(apply_plan(network, plan), weights)
    return network, tuple(images.train.tensors[0].shape[1:])


def _read(path: Path) -> dict[str, Any]:
    """Reads a file of JSON that `prune_checkpoint` wrote."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: expected what explainfix prune wrote beside model.pt")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}): expected what explainfix prune wrote") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a dict: expected what explainfix prune wrote")
    return found


def _check_folder(out: Path) -> None:
    """Refuses a folder in which one of the files is that this command writes, or that cannot be written into."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out must be a folder, {out} is a file")
    check_writable(*(out / name for name in FILES if not (out / name).exists()))
    there = next((out / name for name in FILES if (out / name).exists()), None)
    if there is not None:
        raise FileExistsError(f"{there} is there: choose another --out")


def _fine_tuning(trained: TrainConfig, config: PruneConfig, device: torch.device) -> TrainConfig:
    """Returns the configuration of fine-tuning: the training's, with what `config` sets otherwise."""
    return dataclasses.replace(
        trained.for_one_process(device.type),
        epochs=max(1, config.epochs),  # a Trainer needs one at least, also where it only tests
        lr=trained.lr if config.lr is None else config.lr,
        seed=trained.seed if config.seed is None else config.seed,
    )


def _pruned(trainer: Trainer, config: PruneConfig, observer: Observer) -> PruneReport:
    image = trainer.data.train[0][0][None]
    return channelprune(
        trainer.network,
        image.to(trainer.device),
        amount=config.amount,
        criterion=config.criterion,
        data=_batches(trainer, config.batches, observer),
        scope=config.scope,
        granularity=config.granularity,
        weigh=config.weigh,
        structured=config.structured,
        bn_bias=config.bn_bias,
        seed=trainer.config.seed,
    )


def _batches(trainer: Trainer, count: int, observer: Observer) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the first `count` batches of training images, or all if there are fewer."""
    observer.stage("scoring filters", min(count, len(trainer.train_loader)))
    for images, targets in itertools.islice(trainer.train_loader, count):
        yield images, targets
        observer.step()
    observer.stage("pruning, verifying", 1)


def _fine_tuned(
    trainer: Trainer, report: PruneReport, epochs: int, out: Path, observer: Observer
) -> dict[str, float] | None:
    """Writes what pruning made, fine-tunes, and writes the network; returns its test scores, None for 0 epochs."""
    write_atomic(out / "kept.png", report.plot)
    _write(out / "plan.json", json.dumps(report.plan))
    if epochs:
        keep_zeros(trainer.network, report.plan)
        trainer.fit(out, observer)
    write_atomic(out / "model.pt", lambda file: torch.save(trainer.network.state_dict(), file))
    (out / "checkpoint.pt").unlink(missing_ok=True)  # no use to resume from, and model.pt has its weights
    return trainer.evaluate(trainer.data.test) if epochs else None


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))
