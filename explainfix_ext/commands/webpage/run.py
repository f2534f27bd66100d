"""All numbers behind the report of `explainfix explain`. What a network does not allow is left out, with the reason."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from explainfix_ext._support import machine
from explainfix_ext._support.models import spatial_convolutions
from explainfix_ext._support.text import first_line
from explainfix_ext.explain.explainsteer import explainsteer
from explainfix_ext.explain.saliency import saliency
from explainfix_ext.explain.spectra import Spectra
from explainfix_ext.memory import MemoryReport, memory_report, save_memory
from explainfix_ext.memory.save import MODES
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.nn.summary import Summary, summary
from explainfix_ext.prune import PruneReport, channelprune
from explainfix_ext.prune.costs import stored_numbers
from explainfix_ext.prune.score.criteria import Criterion
from explainfix_ext.training import costs, metrics
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.runs import describe
from explainfix_ext.training.trainer import Trainer

from .subject import ExplainConfig, Subject, find_subject

AMOUNTS = (0.5, 0.8, 0.9, 0.95, 0.99)  # of the spatial filters
MEMORY_IMAGES = 8  # at most
_NO_DATA = "no data was given (--data)"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Pruned:
    """The network without a share of its filters: what channelprune did and the test scores, or why it could not."""

    amount: float
    report: PruneReport | None = None
    test: dict[str, float] | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        keys = ("pruned_filters", "parameters", "multiply_adds", "verify_error", "protected")
        found = {} if self.report is None else self.report.as_dict()
        return {"amount": self.amount, "reason": self.reason, "test": self.test} | {k: found.get(k) for k in keys}


@dataclass
class Explained:
    """What is known of a network. `as_dict` gives the numbers, as JSON takes them.

    Attributes:
        command: that made it.
        scored: images on which saliency was taken.
        spectra: "filters" and, with data, "saliency"; and if its start is known, "start filters", "start saliency".
        filters: the first, the middle and the last spatial layer, by name.
        summary: of the fixed layers; None if it could not be made.
        memory: mode of `save_memory` -> what a step on `memory_images` images keeps; empty if one could not be counted.
        criterion: by what filters are scored for pruning, in words.
        pruned: one for each of AMOUNTS.
        test: scores on the test images; None without data. NaN where a test set has one class only.
        missing: part of the report -> why it could not be made.
    """

    subject: Subject
    command: str
    seconds: float = 0.0
    scored: int = 0
    spectra: dict[str, Spectra] = field(default_factory=dict)
    filters: dict[str, nn.Conv2d] = field(default_factory=dict)
    summary: Summary | None = None
    memory: dict[str, MemoryReport] = field(default_factory=dict)
    memory_images: int = 0
    criterion: str = ""
    pruned: list[Pruned] = field(default_factory=list)
    test: dict[str, float] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    finished: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def metric(self) -> str | None:
        """The test score that tables show."""
        return None if self.subject.images is None else metrics.PRIMARY[self.subject.images.task]

    @property
    def zero_before(self) -> float:
        """Share of the filters that pruning chooses from that were zero before it; 0 if none was pruned."""
        report = next((pruned.report for pruned in self.pruned if pruned.report is not None), None)
        if report is None:
            return 0.0
        costs = [report.before[name] for name in report.layers]
        return 1 - sum(cost.nonzero for cost in costs) / sum(cost.filters for cost in costs)

    @property
    def pruned_anew(self) -> list[Pruned]:
        """Of `pruned`, those whose amount is more than was zero before, to a whole percent: zeros are pruned first, so
        the others take nothing, or next to nothing."""
        return [pruned for pruned in self.pruned if round(pruned.amount, 2) > round(self.zero_before, 2)]

    def as_dict(self) -> dict[str, Any]:
        """All numbers; what is not finite is None."""
        subject = self.subject
        found = {
            "finished": self.finished,
            "seconds": self.seconds,
            "command": self.command,
            "model": subject.name,
            "weights": subject.weights,
            "init": subject.init,
            "image": list(subject.shape),
            "epochs": subject.epochs,
            "config": None if subject.training is None else vars(subject.training),
            "data": None if subject.images is None else describe(subject.images),
            "metric": self.metric,
            "test": self.test,
            "learned_parameters": costs.learned_parameters(subject.network),
            "stored_numbers": stored_numbers(subject.network),
            "spatial_layers_left": subject.left,
            "scored_images": self.scored,
            "spectra": {name.replace(" ", "_"): json.loads(s.to_json()) for name, s in self.spectra.items()},
            "summary": None if self.summary is None else [vars(layer) for layer in self.summary.layers],
            "memory": {"images": self.memory_images} | {mode: _bytes(report) for mode, report in self.memory.items()},
            "pruning": {
                "criterion": self.criterion,
                "zero_before": self.zero_before,
                "amounts": [pruned.as_dict() for pruned in self.pruned],
            },
            "missing": self.missing,
            "hardware": machine.hardware(subject.device),
            "versions": machine.versions(),
        }
        return _finite(found)


def _bytes(report: MemoryReport) -> dict[str, Any]:
    ours, frozen = report.by(lambda name, kind: kind)
    sides = {"ours": (report.ours, ours), "frozen": (report.frozen, frozen)}
    return {n: {"peak": u.peak, "kept": u.kept_bytes, "kept_by_kind": dict(kinds)} for n, (u, kinds) in sides.items()}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def explain(config: ExplainConfig, command: str, observer: Observer | None = None) -> Explained:
    """Explain a network: of which frequencies its filters are made, what it stores and keeps, what pruning would leave.

    Args:
        command: that asked for it, for the report.

    Returns:
        All that the report shows. A part that the network or the lack of data does not allow is named in `missing`.

    Raises:
        ValueError, OSError: bad input.

    Example:
        >>> found = explain(ExplainConfig("runs/demo/dct2/checkpoint.pt"), "a script")
        >>> found.spectra["filters"].centre, found.as_dict()["test"]
    """
    start, observer = time.perf_counter(), observer or Observer()
    found = Explained(find_subject(config), command)
    _Work(found, config, observer).run()
    found.seconds = time.perf_counter() - start
    return found


class _Work:
    """The parts of the report, one after another, into `found`."""

    def __init__(self, found: Explained, config: ExplainConfig, observer: Observer) -> None:
        self.found, self.subject, self.observer = found, found.subject, observer
        images, training, self.trainer = self.subject.images, self.subject.training, None
        if images is not None and training is not None:
            self.trainer = Trainer(training, images, self.subject.device, network=self.subject.network)
            self.batches = min(config.batches, len(self.trainer.train_loader))

    def run(self) -> None:
        found, network = self.found, self.subject.network
        if self.subject.no_start:
            found.missing["before training"] = self.subject.no_start
        self.attempt("test", self.test)
        self.attempt("spectra", lambda: self.spectra("filters", with_data=False))
        self.attempt("saliency", lambda: self.spectra("saliency", with_data=True))
        layers = [*spatial_convolutions(network).items()]
        found.filters = dict(layers[i] for i in sorted({0, len(layers) // 2, len(layers) - 1}) if layers)
        found.summary = self.attempt("summary", lambda: summary(network, (1, *self.subject.shape)))
        self.attempt("memory", self.memory)
        self.attempt("pruning", self.pruning)

    def attempt(self, part: str, make: Callable[[], _T]) -> _T | None:
        """make(), or None and the reason in `missing`: one part that fails does not take the others with it."""
        try:
            return make()
        except Exception as error:  # a model may raise anything
            self.found.missing[part] = first_line(error)
            return None

    def test(self) -> None:
        trainer = self.with_data()
        self.observer.stage("testing", 1)
        self.found.test = trainer.evaluate(trainer.data.test)
        self.observer.step()

    def with_data(self) -> Trainer:
        if self.trainer is None:
            raise ValueError(_NO_DATA)
        return self.trainer

    def scoring(self, stage: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The first batches of training images, the same each time."""
        loader = self.with_data().train_loader
        self.observer.stage(stage, self.batches)
        self.found.scored = 0
        for images, targets in itertools.islice(loader, self.batches):
            self.found.scored += len(images)
            yield images, targets
            self.observer.step()

    def spectra(self, kind: str, *, with_data: bool) -> None:
        for name, network in ((kind, self.subject.network), (f"start {kind}", self.subject.start)):
            if network is not None:
                data = self.scoring(f"{name}: spectra") if with_data else None
                self.found.spectra[name] = explainsteer(network, data)

    def images(self, count: int) -> Tensor:
        if self.subject.images is not None:
            return self.subject.images.train[:count][0].to(self.subject.device)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, *self.subject.shape, generator=generator).to(self.subject.device)

    def memory(self) -> None:
        self.observer.stage("counting memory", len(MODES))
        images, reports = self.images(MEMORY_IMAGES), {}
        for mode in MODES:
            network = copy.deepcopy(self.subject.network).train()
            save_memory(network, mode)
            reports[mode] = memory_report(network, images)
            self.observer.step()
        self.found.memory, self.found.memory_images = reports, len(images)  # all modes, or none to compare with

    def pruning(self) -> None:
        criterion, self.found.criterion = self.criterion()
        self.observer.stage("pruning", len(AMOUNTS))
        for amount in AMOUNTS:
            self.found.pruned.append(self.pruned(amount, criterion))
            self.observer.step()
        if all(pruned.report is None for pruned in self.found.pruned):
            raise ValueError(self.found.pruned[0].reason)

    def criterion(self) -> tuple[Criterion, str]:
        """Scores, or the name of a criterion; and in words."""
        network = self.subject.network
        if self.trainer is not None:
            scores = saliency(network, self.scoring("scoring filters"))
            return scores, f"explainfix, |w dc/dw|, on {self.found.scored:,} training images"
        if any(isinstance(m, FixedConv2d) and m.bank.index is not None for m in network.modules()):
            return "random", "chance: filters of an index bank are all of one size, and only data tells them apart"
        return "l1", "l1, the sum of |w|"

    def pruned(self, amount: float, criterion: Criterion) -> Pruned:
        """As `explainfix prune` does it by default."""
        test = None
        try:
            report = channelprune(
                self.subject.network, self.images(1), amount=amount, criterion=criterion, bn_bias="drop"
            )
            if self.trainer is not None:
                images, training = self.trainer.data, self.trainer.config
                small = Trainer(training, images, self.subject.device, network=report.model)
                test = small.evaluate(images.test)
        except Exception as error:  # a model may raise anything
            return Pruned(amount, reason=first_line(error))
        return Pruned(amount, dataclasses.replace(report, model=None, original=None), test)
