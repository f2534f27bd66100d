"""Trains and tests one network. `runs` and `prune_checkpoint` train with it; the web page only tests.

It writes, in the folder of the run: `checkpoint.pt` (to resume from) and `log.jsonl` (one line per epoch).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from explainfix_ext._support.files import write_atomic
from explainfix_ext._support.text import first_line

from . import distributed, losses, metrics
from .augment import Augment
from .checkpoint import load_state, rng_state, save_checkpoint, seed_all, set_rng_state
from .config import TrainConfig
from .data import Dataset, limited
from .models import check_model, logits_of
from .network import check_banks_alike, make_network
from .observer import Observer
from .sampling import sampler_for

# What a checkpoint of a training run holds.
STATE = {"config", "epoch", "history", "model", "optimizer", "scheduler", "scaler", "rng"}


class Trainer:
    """Trains one network: holds it with its optimizer, schedule and data.

    `fit` trains and writes checkpoints, `restore` resumes from one, `evaluate` tests.

    Args:
        config: the settings.
        data: the images, as `load_dataset` returns them.
        device: where it trains.
        workers: processes that load images; 0 loads them in this one.
        network: train this one, such as a pruned network, instead of the one that `config` describes.

    Attributes:
        network: the model itself. `model` is what runs: the same object, or DDP around it.
        history: one record (a line of log.jsonl) per epoch done.
        report: the report of `convert`; None if the network is learned or was given.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        device: torch.device,
        workers: int = 0,
        network: nn.Module | None = None,
    ) -> None:
        import torchmetrics  # noqa: F401 (`evaluate` needs it: told now, and not after an epoch, if it is missing)

        self.config, self.data, self.device, self.workers = config, data, device, workers
        self.network, self.report = make_network(config, data) if network is None else (network, None)
        self.model: nn.Module = self.network.to(device)
        check_banks_alike(self.network)
        if distributed.world_size() > 1:
            self.model = DistributedDataParallel(self.network, [device.index] if device.index is not None else None)
        images, targets = data.train[:1]
        self.augment = Augment(config.augment, data.mean, data.std, tuple(images.shape[2:]))
        if self.augment.size is not None:
            images, targets = self.augment((images, targets))
            check_model(self.network, config.model, images[0].to(device), targets[0], data.outputs)
        self.train_loader, self.sampler = self._train_loader()
        trained: Any = self.train_loader.dataset
        self.loss_function = losses.loss_for(data.task, config.loss, trained.tensors[1])
        learned = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, config.lr, weight_decay=config.weight_decay)
        updates = config.epochs * math.ceil(len(self.train_loader) / config.accumulate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, WarmupCosine(updates))
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.history: list[dict[str, Any]] = []
        seed_all(config.seed + distributed.rank())  # the same state, however many random numbers the network drew

    def fit(self, folder: Path, observer: Observer) -> None:
        """Trains the epochs that are left; after each, writes checkpoint and log into `folder`."""
        if distributed.rank() == 0:
            observer.start(self.config, len(self.train_loader), len(self.history))
            write_log(folder, self.history)
        for epoch in range(len(self.history), self.config.epochs):
            start = time.perf_counter()
            loss = self._train_epoch(epoch, observer)
            seconds = time.perf_counter() - start
            record = {
                "epoch": epoch + 1,
                "lr": self.optimizer.param_groups[0]["lr"],
                "train_loss": loss,
                **{f"val_{name}": value for name, value in self.evaluate(self.data.val).items()},
                "train_seconds": seconds,
                "step_seconds": seconds / len(self.train_loader),
            }
            self.history.append(record)
            state = self.state()
            if distributed.rank() == 0:
                save_checkpoint(folder / "checkpoint.pt", state)
                write_log(folder, self.history)
                observer.epoch(record)

    def _train_epoch(self, epoch: int, observer: Observer) -> float:
        """Trains one epoch and returns the mean loss over all ranks."""
        self.model.train()
        self.sampler.set_epoch(epoch)
        steps, group = len(self.train_loader), self.config.accumulate
        total = torch.zeros((), device=self.device)
        for step, batch in enumerate(self.train_loader):
            update = (step + 1) % group == 0 or step + 1 == steps
            size = min(group, steps - step // group * group)  # the last update may have fewer batches
            with contextlib.nullcontext() if update else self._no_sync():
                loss = self.loss(self.model, self.augment(batch))
                self.scaler.scale(loss / size).backward()
            total += loss.detach()
            if update:
                self._update()
            if distributed.rank() == 0:
                observer.step()
        mean = distributed.mean_over_ranks(total / steps)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss became {mean} in epoch {epoch + 1} of {self.config.label}: lower lr, got {self.config.lr}"
            )
        return mean

    def _update(self) -> None:
        """Steps optimizer and schedule; neither steps where gradients in fp16 overflowed."""
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.get_scale() >= scale:
            self.scheduler.step()

    def _no_sync(self) -> contextlib.AbstractContextManager:
        """Returns a context in which DDP skips the all-reduce: a batch before the last of an update needs none."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Runs `model` under the mixed precision of the configuration; returns logits in float32."""
        dtype = torch.float16 if self.config.amp == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype, enabled=self.config.amp != "off"):
            logits = logits_of(model(images.to(self.device, non_blocking=True)))
        return logits.float()

    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """Returns the mean loss of a batch (images, targets), a scalar."""
        images, targets = batch
        return self.loss_function(self.forward(model, images), targets.to(self.device, non_blocking=True))

    @torch.no_grad()
    def evaluate(self, dataset: TensorDataset, kept: list[tuple[Tensor, Tensor]] | None = None) -> dict[str, float]:
        """Returns loss and metrics over a whole data set. Each rank takes its share, no image counts twice.

        Args:
            kept: gets the logits and targets of each batch of this rank's share, if it is given.
        """
        from torchmetrics import MeanMetric

        self.network.eval()
        distributed.send_buffers(self.network)
        mean_loss = MeanMetric().to(self.device)
        scores = metrics.metrics_for(self.data.task, self.data.classes, self.data.labels).to(self.device)
        share = range(distributed.rank(), len(dataset), distributed.world_size())
        for images, targets in self._loader(dataset, share, 2 * self.config.batch_size, drop_last=False):
            logits, targets = self.forward(self.network, images), targets.to(self.device)
            # What a batch's mean loss is of: known targets, or images (losses with a name).
            weight = metrics.known(targets) if self.config.loss == "auto" else len(targets)
            mean_loss.update(self.loss_function(logits, targets), weight=weight)
            metrics.add_batch(scores, logits, targets)
            if kept is not None:
                kept.append((logits, targets))
        return {"loss": float(mean_loss.compute()), **metrics.compute(scores)}

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint holds. Every rank must call it, as the random generators of all are gathered."""
        return {
            "config": dataclasses.asdict(self.config),
            "epoch": len(self.history),
            "history": self.history,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": distributed.gather(rng_state(self.device)),
        }

    def restore(self, state: dict[str, Any], source: str) -> None:
        """Loads what `state` returned, so that `fit` goes on as if it had never stopped.

        Args:
            state: a checkpoint, as `load_checkpoint` reads it.
            source: its path, for messages.

        Raises:
            ValueError: it is of another configuration (the field is named), does not fit the network, or is damaged.
        """
        self.config.check_same(state["config"], source)
        load_state(self.network, state["model"], source)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.scaler.load_state_dict(state["scaler"])
            self.history = list(state["history"])
            set_rng_state(state["rng"][distributed.rank()], self.device)
        except Exception as error:  # what is in a damaged one may be anything
            raise ValueError(f"{source} cannot be resumed from: {first_line(error)}") from None

    def _train_loader(self) -> tuple[DataLoader, DistributedSampler]:
        dataset = limited(self.data.train, self.config.limit, self.config.seed)
        ranks = distributed.world_size()
        sampler = sampler_for(dataset, self.config.epoch_size, self.config.seed)
        batch_size = min(self.config.batch_size, len(sampler))
        if batch_size < 2:
            given = self.config.epoch_size or len(dataset)
            raise ValueError(f"each of {ranks} processes needs two training images at least, got {given} in all")
        return self._loader(dataset, sampler, batch_size, drop_last=True), sampler

    def _loader(self, dataset: TensorDataset, order: Any, batch_size: int, drop_last: bool) -> DataLoader:
        """Returns a loader that indexes the tensors once per batch, which is faster than once per image.

        drop_last is for training: batch norm fails on a last batch of one image.
        """
        batches = BatchSampler(order, batch_size, drop_last)
        pin = self.device.type == "cuda"
        return DataLoader(dataset, batch_size=None, sampler=batches, num_workers=self.workers, pin_memory=pin)


class WarmupCosine:
    """Maps the number of an update to a factor of the learning rate: up over the first 5 %, then a cosine to 0."""

    def __init__(self, updates: int) -> None:
        self.updates, self.warmup = updates, max(1, updates // 20)

    def __call__(self, update: int) -> float:
        if update < self.warmup:
            return (update + 1) / self.warmup
        progress = (update - self.warmup) / max(1, self.updates - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def write_log(folder: Path, history: list[dict[str, Any]]) -> None:
    """Writes log.jsonl anew, all of it: appending could lose an epoch in a crash, or write one twice."""
    lines = "".join(json.dumps(record) + "\n" for record in history)
    write_atomic(folder / "log.jsonl", lambda file: file.write(lines.encode()))
