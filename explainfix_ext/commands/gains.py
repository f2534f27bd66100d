"""Trains one network four ways and measures what each way reaches and costs. `commands/demo.py` calls `compare`.

It writes, in OUT: the folders of the training runs and of pruning, `report.html` (the fixed network explained),
`demo.png` and `demo.json`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from explainfix_ext._support.files import check_writable, write_atomic
from explainfix_ext._support.timing import Timing, interleaved, keep_memory
from explainfix_ext.commands.webpage.subject import ExplainConfig
from explainfix_ext.prune import apply_plan
from explainfix_ext.training import costs, distributed
from explainfix_ext.training.checkpoint import load_weights
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import Dataset, load_dataset
from explainfix_ext.training.metrics import standard_error
from explainfix_ext.training.network import load_network, make_network
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint
from explainfix_ext.training.runs import train_networks
from explainfix_ext.training.trainer import Trainer

from .explain import check_report, write_report
from .gains_shown import FIXED, LEARNED, PRUNED, RECOMPUTE, plot_gains

ROUNDS = 9  # of interleaved timing


@dataclass(frozen=True)
class _Way:
    """Holds one trained network as its files have it, with what it was trained by and its folder."""

    trainer: Trainer
    folder: Path
    test: dict[str, float]
    history: list[dict[str, Any]]


def compare(
    base: TrainConfig,
    prune: PruneConfig,
    out: Path,
    *,
    device: str = "auto",
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Trains a network learned, fixed by `auto`, and fixed with less memory; prunes the fixed one; compares all four.

    Args:
        base: the model, the data and how it is trained; its `init` and `memory` are not read.
        prune: how the fixed network is pruned and fine-tuned.
        out: the folder that everything is written into; it must not hold a former result.
        device: "auto", "cpu", "cuda" or "cuda:N".
        observer: is told what happens; None tells nobody.

    Returns:
        What demo.json holds: under "networks" one dict for each way, with accuracy and its standard error, seconds of a
        training step and of one image (quartiles beside them), bytes of the peak and of the checkpoint, and the number
        of learned parameters; the configurations, the data, the hardware and versions.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: the input is bad; nothing has been written then.
        FloatingPointError: the loss is no longer finite.
        OSError: the disk is full.
    """
    observer = observer or Observer()
    if distributed.world_size() > 1:
        raise ValueError("demo runs in one process: start it without torchrun")
    check_report(out / "report.html", "--out")
    check_writable(out / "demo.png", out / "demo.json")
    fixed = dataclasses.replace(base, init="auto")
    configs = {
        LEARNED: dataclasses.replace(base, init="learned"),
        FIXED: fixed,
        RECOMPUTE: dataclasses.replace(fixed, memory="recompute"),
    }
    trained = train_networks([*configs.values()], out, device=device, observer=observer)
    checkpoint = out / fixed.label / "checkpoint.pt"
    pruned = prune_checkpoint(checkpoint, out / "pruned", prune, device=device, observer=observer)
    place, data = distributed.choose_device(device), load_dataset(base.data, base.seed)
    ways = {}
    for (name, config), run in zip(configs.items(), trained["runs"], strict=True):
        network, _ = load_network(config, data, out / config.label / "model.pt")
        trainer = Trainer(config, data, place, network=network)
        ways[name] = _Way(trainer, out / config.label, run["test"], run["history"])
    trainer = Trainer(fixed, data, place, network=_pruned_network(fixed, data, out / "pruned"))
    ways[PRUNED] = _Way(trainer, out / "pruned", pruned["test"]["fine_tuned"], pruned["history"])
    results = {
        "networks": _measured(ways, observer),
        "config": vars(fixed),
        "prune": pruned["prune"],
        **{name: trained[name] for name in ("data", "metric", "hardware", "versions")},
    }
    about = ExplainConfig(model=str(checkpoint), batches=prune.batches, device=device)
    write_report(about, out / "report.html", f"explainfix explain {checkpoint}", observer)
    plot_gains(results, out / "demo.png")
    write_atomic(out / "demo.json", lambda file: file.write(json.dumps(results, indent=1).encode()))
    return results


def _pruned_network(config: TrainConfig, data: Dataset, folder: Path) -> nn.Module:
    network, _ = make_network(config, data, to_load=True)
    apply_plan(network, json.loads((folder / "plan.json").read_text()))
    load_weights(network, folder / "model.pt")
    return network


def _measured(ways: dict[str, _Way], observer: Observer) -> dict[str, dict[str, Any]]:
    """Counts and times the networks; those are trained on by it, and must not be used after."""
    observer.stage("timing", 2)
    keep_memory()
    latencies = interleaved({name: _one_image(way.trainer) for name, way in ways.items()}, ROUNDS)
    observer.step()
    batches = {name: next(iter(way.trainer.train_loader)) for name, way in ways.items()}
    peaks = {name: _peak(way.trainer, batches[name]) for name, way in ways.items()}
    steps = interleaved({name: _training_step(way.trainer, batches[name]) for name, way in ways.items()}, ROUNDS)
    observer.step()
    return {
        name: {
            **_accuracy(way),
            **_seconds("step", steps[name]),
            **_seconds("latency", latencies[name]),
            "peak_bytes": peaks[name],
            "learned_parameters": costs.learned_parameters(way.trainer.network),
            "checkpoint_bytes": (way.folder / "model.pt").stat().st_size,
            "history": way.history,
        }
        for name, way in ways.items()
    }


def _accuracy(way: _Way) -> dict[str, float]:
    """Returns the share of test images that are right, and the standard error of a share of so many images."""
    share, count = way.test["accuracy"], len(way.trainer.data.test)
    return {"accuracy": share, "accuracy_standard_error": standard_error(share, count)}


def _seconds(name: str, timing: Timing) -> dict[str, Any]:
    found = timing.as_dict()
    return {f"{name}_seconds": found["median"], f"{name}_seconds_quartiles": found["quartiles"]}


def _peak(trainer: Trainer, batch: list[torch.Tensor]) -> int:
    return costs.peak_bytes(trainer.network, lambda model: trainer.loss(model, batch))


def _one_image(trainer: Trainer) -> Callable[[], None]:
    network = copy.deepcopy(trainer.network).eval()
    image = trainer.data.test[:1][0].to(trainer.device)

    @torch.no_grad()
    def call() -> None:
        network(image)
        _wait(trainer.device)

    return call


def _training_step(trainer: Trainer, batch: list[torch.Tensor]) -> Callable[[], None]:
    trainer.network.train()

    def call() -> None:
        trainer.loss(trainer.network, batch).backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        _wait(trainer.device)

    return call


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
