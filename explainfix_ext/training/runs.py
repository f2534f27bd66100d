"""Trains several networks on the same images, one after another, and writes results.json. The commands call it."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from explainfix_ext._support import machine
from explainfix_ext._support.files import check_writable, locked, write_atomic

from . import costs, distributed, metrics
from .checkpoint import load_checkpoint
from .config import TrainConfig
from .data import Dataset, load_dataset
from .final_scores import final_scores
from .network import make_network
from .observer import Observer
from .trainer import STATE, Trainer


def train_networks(
    configs: Sequence[TrainConfig],
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Trains each configuration in OUT/<label>, tests it, and writes OUT/results.json.

    Args:
        configs: one for each network; data set and seed must be the same in all, labels must differ.
        out: the folder that everything is written into.
        resume: go on from the checkpoints in `out`; a finished run is not trained again.
        device: "auto", "cpu", "cuda" or "cuda:N".
        workers: processes that load images; 0 loads them in this one.
        observer: is told what happens; None tells nobody.

    Returns:
        What results.json holds: one dict per network under "runs", the data set, the hardware and versions.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: the input is bad, or another process trains into `out`; nothing
            has been written then.
        FloatingPointError: the loss is no longer finite; the last whole checkpoint stays.
        OSError: the disk is full; the last whole checkpoint stays.
    """
    start = time.perf_counter()
    check_writable(*files_of(configs, out))
    with locked(out) if distributed.rank() == 0 else contextlib.nullcontext():
        return _train_networks(configs, out, start, resume, device, workers, observer or Observer())


def _train_networks(
    configs: Sequence[TrainConfig],
    out: Path,
    start: float,
    resume: bool,
    device: str,
    workers: int,
    observer: Observer,
) -> dict[str, Any]:
    saved = check_folder(configs, out, resume)
    if resume and not saved:
        expected = " and no ".join(str(out / config.label / "checkpoint.pt") for config in configs)
        warnings.warn(f"resume found no {expected}: training begins anew", stacklevel=3)
    place = distributed.choose_device(device)
    if place.type == "cpu" and any(config.amp == "fp16" for config in configs):
        raise ValueError("amp fp16 needs a CUDA device: use bf16 on the CPU")
    if distributed.rank() == 0:
        observer.stage(f"reading {configs[0].data}", 1)
    data = load_dataset(configs[0].data, configs[0].seed)
    for config in configs[1:]:
        make_network(config, data)  # if it cannot be made, that is told before the first one is trained for hours
    with distributed.process_group(place):
        runs = []
        for config in configs:
            trainer = Trainer(config, data, place, workers)
            if config.label in saved:
                trainer.restore(saved.pop(config.label), str(out / config.label / "checkpoint.pt"))
            trainer.fit(out / config.label, observer)
            if distributed.rank() == 0:
                observer.stage(f"{config.label}: testing, counting memory", 1)
            runs.append(summarise(trainer, out / config.label))
    results = {
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - start,
        "data": describe(data),
        "metric": metrics.PRIMARY[data.task],
        "hardware": machine.hardware(place) | {"processes": configs[0].world_size},
        "versions": machine.versions(),
        "runs": runs,
    }
    if distributed.rank() == 0:
        text = json.dumps(results, indent=1)
        write_atomic(out / "results.json", lambda file: file.write(text.encode()))
    return results


def files_of(configs: Sequence[TrainConfig], out: Path) -> list[Path]:
    """Returns the files that `train_networks` writes."""
    names = ("checkpoint.pt", "log.jsonl", "model.pt")
    return [out / "results.json", *(out / config.label / name for config in configs for name in names)]


def check_folder(configs: Sequence[TrainConfig], out: Path, resume: bool) -> dict[str, dict[str, Any]]:
    """Returns the checkpoints to go on from, by label, after checking all of them.

    Raises:
        FileExistsError: a checkpoint is there, and `resume` is False.
        ValueError: two configurations have one label, or a checkpoint is damaged or of another configuration.
    """
    labels = [config.label for config in configs]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"each init must be given once, got {twice} twice")
    saved = {}
    for config in configs:
        path = out / config.label / "checkpoint.pt"
        if not path.exists():
            continue
        if not resume:
            raise FileExistsError(f"{path} is there: add --resume to go on from it, or choose another --out")
        saved[config.label] = load_checkpoint(path)
        if STATE - saved[config.label].keys():
            raise ValueError(f"{path} is not a checkpoint of explainfix train")
        config.check_same(saved[config.label]["config"], str(path))
    return saved


def summarise(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Tests a trained network, writes its model.pt, and counts what it costs. Every rank must call it.

    Returns:
        The network's dict under "runs" in results.json.
    """
    scores, confusion = final_scores(trainer)
    buffer = io.BytesIO()
    torch.save(trainer.network.state_dict(), buffer)
    if distributed.rank() == 0:
        write_atomic(folder / "model.pt", lambda file: file.write(buffer.getvalue()))
    batch = trainer.augment(next(iter(trainer.train_loader)))
    report, config = trainer.report, trainer.config
    return {
        "network": config.label,
        "config": vars(config),
        "test": scores,
        "confusion": confusion,
        "step_seconds": statistics.median(record["step_seconds"] for record in trainer.history),
        "learned_parameters": costs.learned_parameters(trainer.network),
        "checkpoint_bytes": len(buffer.getvalue()),
        "peak_bytes": costs.peak_bytes(trainer.network, lambda model: trainer.loss(model, batch)),
        "kept_bytes": costs.bytes_kept(trainer.network, lambda model: trainer.loss(model, batch)),
        "fixed_layers": len(report.converted) if report else 0,
        "spatial_layers_left": [f"{layer.name}: {layer.reason}" for layer in report.skipped] if report else [],
        "history": trainer.history,
    }


def describe(data: Dataset) -> dict[str, Any]:
    """Returns the facts about a data set that results.json keeps: names, sizes, how images were normalised."""
    names = ("name", "task", "classes", "channels")
    counts = {part: len(getattr(data, part)) for part in ("train", "val", "test")}
    image = list(data.train.tensors[0].shape[1:])
    lists = {name: list(getattr(data, name)) for name in ("labels", "mean", "std")}
    return {**{name: getattr(data, name) for name in names}, "image": image, **counts, **lists}
