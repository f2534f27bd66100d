"""Holds the numbers of one report. `run` fills it in, the other files read it, and `pictures` adds to `missing`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from torch import nn

from explainfix_ext._support import machine
from explainfix_ext.explain.class_features import ClassFeatures
from explainfix_ext.explain.class_purity import ClassPurity
from explainfix_ext.explain.spectra import Spectra
from explainfix_ext.memory import MemoryReport
from explainfix_ext.nn.summary import Summary
from explainfix_ext.prune import PruneReport
from explainfix_ext.prune.costs import stored_numbers
from explainfix_ext.training import costs, metrics
from explainfix_ext.training.final_scores import Confusion
from explainfix_ext.training.runs import describe

from .classes import Directions, Groups
from .frequencies import Frequencies
from .predictions import Predictions
from .subject import Subject


@dataclass(frozen=True)
class Pruned:
    """Holds what pruning one share of the filters leaves, or why it could not be done.

    Attributes:
        amount: share of the spatial filters to prune.
        report: what `channelprune` did, without its models; None if it failed.
        test: scores of the pruned network on the test images; None without data.
        reason: why it failed; "" if it did not.
    """

    amount: float
    report: PruneReport | None = None
    test: dict[str, float] | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers for JSON."""
        keys = ("pruned_filters", "parameters", "multiply_adds", "verify_error", "protected")
        found = {} if self.report is None else self.report.as_dict()
        return {"amount": self.amount, "reason": self.reason, "test": self.test} | {k: found.get(k) for k in keys}


@dataclass
class Explained:
    """Holds all numbers of a report; what could not be made is empty, and its reason is in `missing`.

    Attributes:
        subject: the network.
        command: the command line that asked for the report.
        seconds: how long it took.
        scored: number of images that saliency was computed on.
        spectra: "filters" and, with data, "saliency"; if the network before training is known, also "start filters"
            and "start saliency".
        frequencies: where it looks in test images, and at which frequencies; None without data.
        filters: the first, the middle and the last spatial layer, by name: those that are drawn.
        purity: how well channels tell classes apart; this and the next three are None where there are no data, or no
            classes.
        features: which inputs of the last layer the classes rest on.
        groups: images that a layer treats alike.
        directions: what the network recognises without a class's direction.
        summary: what the fixed layers store; None if it could not be made.
        memory: mode of `save_memory` -> what one training step keeps; empty if any mode could not be counted.
        memory_images: images in that step.
        criterion: how filters are scored for pruning, in words.
        pruned: one entry for each of `run.AMOUNTS`.
        test: scores on the test images, NaN if all of those are of one class; None without data.
        confusion: how often which class is taken for which, as `final_scores` returns it; empty without data.
        predictions: what the network says of some test images; None without data.
        missing: part of the report -> why it could not be made.
        finished: date and time, UTC.
    """

    subject: Subject
    command: str
    seconds: float = 0.0
    scored: int = 0
    spectra: dict[str, Spectra] = field(default_factory=dict)
    frequencies: Frequencies | None = None
    filters: dict[str, nn.Conv2d] = field(default_factory=dict)
    purity: ClassPurity | None = None
    features: ClassFeatures | None = None
    groups: Groups | None = None
    directions: Directions | None = None
    summary: Summary | None = None
    memory: dict[str, MemoryReport] = field(default_factory=dict)
    memory_images: int = 0
    criterion: str = ""
    pruned: list[Pruned] = field(default_factory=list)
    test: dict[str, float] | None = None
    confusion: Confusion = field(default_factory=dict)
    predictions: Predictions | None = None
    missing: dict[str, str] = field(default_factory=dict)
    finished: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def metric(self) -> str | None:
        """Returns the name of the test score that tables show; None without data."""
        return None if self.subject.images is None else metrics.PRIMARY[self.subject.images.task]

    @property
    def zero_before(self) -> float:
        """Returns the share of zeros, before pruning, among the filters that it chooses from; 0 if it never ran."""
        report = next((pruned.report for pruned in self.pruned if pruned.report is not None), None)
        if report is None:
            return 0.0
        layers = [report.before[name] for name in report.layers]
        return 1 - sum(layer.nonzero for layer in layers) / sum(layer.filters for layer in layers)

    @property
    def pruned_anew(self) -> list[Pruned]:
        """Returns the entries of `pruned` whose amount is above `zero_before`, compared in whole percent.

        Zero filters are pruned first, so smaller amounts change nothing, or next to nothing.
        """
        return [pruned for pruned in self.pruned if round(pruned.amount, 2) > round(self.zero_before, 2)]

    def as_dict(self) -> dict[str, Any]:
        """Returns all numbers for JSON; one that is not finite becomes None."""
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
            "confusion": self.confusion,
            "learned_parameters": costs.learned_parameters(subject.network),
            "stored_numbers": stored_numbers(subject.network),
            "spatial_layers_left": subject.left,
            "scored_images": self.scored,
            "spectra": {name.replace(" ", "_"): json.loads(s.to_json()) for name, s in self.spectra.items()},
            "frequencies": None if self.frequencies is None else _shares(self.frequencies),
            "class_purity": None if self.purity is None else _purity(self.purity),
            "class_features": self.features
            and {"accuracy": self.features.accuracy, "chance": self.features.chance, "images": self.features.images},
            "groups": self.groups and self.groups.as_dict(),
            "class_directions": self.directions and vars(self.directions),
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


def _shares(found: Frequencies) -> dict[str, Any]:
    """Returns the mean shares of the bands of frequencies, on images, on shuffled ones, and in each class."""
    means = [dict(zip(found.shares, row, strict=True)) for row in found.by_class(found.classes).T.tolist()]
    return {
        "layer": found.layer,
        "bits": found.bits,
        "images": len(found.classes),
        "shares": {band: float(share.mean()) for band, share in found.shares.items()},
        "shuffled": {band: float(share.mean()) for band, share in found.shuffled.items()},
        "classes": dict(zip(found.names, means, strict=True)),
        "difference": found.difference,
        "difference_permuted": found.floor,
    }


def _purity(purity: ClassPurity) -> dict[str, Any]:
    """Returns the numbers of the table of channels, by layer."""
    return {
        name: {
            "channels": len(values),
            "follow": int(purity.follows[name].sum()),
            "purest": float(values.max()),
            "class": int(purity.top[name][int(values.argmax())]),
            "chance": purity.chance[name],
            "mis": purity.mis[name],
            "mis_chance": purity.mis_chance[name],
        }
        for name, values in purity.purity.items()
    }


def _bytes(report: MemoryReport) -> dict[str, Any]:
    """Returns bytes at the peak, kept, and kept by kind of layer, for the network and for plain torch's."""
    ours, frozen = report.by(lambda name, kind: kind)
    sides = {"ours": (report.ours, ours), "frozen": (report.frozen, frozen)}
    names = ("peak_bytes", "kept_bytes", "kept_bytes_by_kind")
    return {n: dict(zip(names, (u.peak, u.kept_bytes, dict(kinds)), strict=True)) for n, (u, kinds) in sides.items()}


def _finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
