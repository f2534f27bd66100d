"""Computes the numbers of a report. A part that the network does not allow is left out, and its reason is kept.

`commands/explain.py` calls `explain`. Each part of the report is one function below, in the order of PARTS.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from explainfix_ext._support.models import spatial_convolutions
from explainfix_ext._support.text import first_line
from explainfix_ext.explain.class_features import class_features
from explainfix_ext.explain.class_purity import class_purity
from explainfix_ext.explain.explainsteer import explainsteer
from explainfix_ext.explain.saliency import saliency
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.memory import memory_report, save_memory
from explainfix_ext.memory.save import MODES
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.summary import summary
from explainfix_ext.prune import channelprune
from explainfix_ext.prune.score.criteria import Criterion
from explainfix_ext.training.data import limited
from explainfix_ext.training.final_scores import final_scores
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.trainer import Trainer

from .classes import find_directions, find_groups
from .explained import Explained, Pruned
from .frequencies import batches, find_frequencies
from .predictions import DRAWN, find_predictions
from .subject import ExplainConfig, Subject, find_subject

AMOUNTS = (0.5, 0.8, 0.9, 0.95, 0.99)  # shares of the spatial filters to prune
TEST_IMAGES = 1024  # at most, for what is tested again for every class or number of inputs
DIRECTION_IMAGES = 256
MEMORY_IMAGES = 8  # of a training step whose memory is counted; fewer if there are fewer


def explain(config: ExplainConfig, command: str, observer: Observer | None = None) -> Explained:
    """Computes a report: which frequencies the filters are made of, what the network stores, what pruning would leave.

    Args:
        config: names the network and its data.
        command: the command line that asked for it, for the report.
        observer: is told of the progress; None tells nobody.

    Returns:
        All that the report shows. A part that the network or the lack of data does not allow is named in `missing`.

    Raises:
        ValueError, OSError: the input is bad.

    Example, after `explainfix demo --out runs/demo`:
        found = explain(ExplainConfig(model="runs/demo/auto+pointwise/checkpoint.pt"), "a script")
        print(found.spectra["filters"].centre, found.as_dict()["test"])
    """
    start, observer = time.perf_counter(), observer or Observer()
    observer.stage(f"reading {config.model}", 1)
    found = Explained(find_subject(config), command)
    if found.subject.no_start:
        found.missing["before training"] = found.subject.no_start
    work = _Work(found, _trainer(found.subject), config.batches, observer)
    for part, compute in PARTS.items():
        try:
            compute(work)
        except Exception as error:  # a model may raise anything, and the other parts shall still be made
            found.missing[part] = first_line(error)
    found.seconds = time.perf_counter() - start
    return found


@dataclass(frozen=True)
class _Work:
    """Carries what the parts share: each reads the network and its data, and writes its numbers into `found`."""

    found: Explained
    trainer: Trainer | None  # reads and tests on the data; None without data
    batches: int
    observer: Observer

    @property
    def subject(self) -> Subject:
        return self.found.subject

    def with_data(self) -> Trainer:
        """Returns the trainer.

        Raises:
            ValueError: there is no data.
        """
        if self.trainer is None:
            raise ValueError("no data was given (--data)")
        return self.trainer

    def scoring(self, stage: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the first batches of training images, the same at each call, and counts them."""
        loader = self.with_data().train_loader
        batches = min(self.batches, len(loader))
        self.observer.stage(stage, batches)
        self.found.scored = 0
        for images, targets in itertools.islice(loader, batches):
            self.found.scored += len(images)
            yield images, targets
            self.observer.step()

    def testing(self, count: int) -> TensorDataset:
        """Returns random test images, `count` or as many as there are."""
        return limited(self.with_data().data.test, count, 0)

    def images(self, count: int) -> Tensor:
        """Returns training images, `count` or as many as there are; without data, random ones."""
        if self.subject.images is not None:
            return self.subject.images.train[:count][0].to(self.subject.device)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, *self.subject.shape, generator=generator).to(self.subject.device)


def _trainer(subject: Subject) -> Trainer | None:
    if subject.images is None or subject.training is None:
        return None
    return Trainer(subject.training, subject.images, subject.device, network=subject.network)


# The parts ----------------------------------------------------------------------------------------------------------


def _test(work: _Work) -> None:
    trainer = work.with_data()
    work.observer.stage("testing", 1)
    work.found.test, work.found.confusion = final_scores(trainer)


def _predictions(work: _Work) -> None:
    trainer = work.with_data()
    count = DRAWN // 2 if trainer.data.task == "segmentation" else DRAWN
    work.found.predictions = find_predictions(trainer, work.testing(count))


def _spectra(work: _Work) -> None:
    work.observer.stage("spectra of the filters", 1)
    for name, network in (("filters", work.subject.network), ("start filters", work.subject.start)):
        if network is not None:
            work.found.spectra[name] = explainsteer(network)


def _saliency(work: _Work) -> None:
    for name, network in (("saliency", work.subject.network), ("start saliency", work.subject.start)):
        if network is not None:
            work.found.spectra[name] = explainsteer(network, work.scoring(f"{name}: spectra"))


def _frequencies(work: _Work) -> None:
    data, subject = work.with_data().data, work.subject
    work.observer.stage("frequencies by image", batches(data))
    work.found.frequencies = find_frequencies(subject.network, data, subject.device, work.observer.step)


def _filters(work: _Work) -> None:
    """Chooses the layers whose filters are drawn: the first, the middle and the last."""
    layers = [*spatial_convolutions(work.subject.network).items()]
    work.found.filters = dict(layers[i] for i in sorted({0, len(layers) // 2, len(layers) - 1}) if layers)


def _check_classes(work: _Work) -> None:
    """Raises ValueError where images have no classes."""
    if work.with_data().data.task == "segmentation":
        raise ValueError("the images have masks, and no classes")


def _class_purity(work: _Work) -> None:
    _check_classes(work)
    work.found.purity = class_purity(work.subject.network, work.scoring("classes: channels"))


def _class_features(work: _Work) -> None:
    _check_classes(work)
    batches = work.scoring("classes: inputs of the last layer")
    test = DataLoader(work.testing(TEST_IMAGES), 64)
    work.found.features = class_features(work.subject.network, batches, test)


def _groups(work: _Work) -> None:
    work.found.groups = find_groups(work.subject.network, work.images(1), work.scoring)


def _directions(work: _Work) -> None:
    _check_classes(work)
    batches = work.scoring("classes: directions")
    work.found.directions = find_directions(work.subject.network, batches, work.testing(DIRECTION_IMAGES))


def _summary(work: _Work) -> None:
    work.observer.stage("counting work", 1)
    work.found.summary = summary(work.subject.network, (1, *work.subject.shape))


def _memory(work: _Work) -> None:
    """Counts a training step in each mode; all modes or none, as they are compared with each other."""
    work.observer.stage("counting memory", len(MODES))
    images, reports = work.images(MEMORY_IMAGES), {}
    for mode in MODES:
        network = copy.deepcopy(work.subject.network).train()
        save_memory(network, mode)
        reports[mode] = memory_report(network, images)
        work.observer.step()
    work.found.memory, work.found.memory_images = reports, len(images)


def _pruning(work: _Work) -> None:
    found = work.found
    criterion, found.criterion = _criterion(work)
    work.observer.stage("pruning", len(AMOUNTS))
    for amount in AMOUNTS:
        found.pruned.append(_pruned(work, amount, criterion))
        work.observer.step()
    if all(pruned.report is None for pruned in found.pruned):
        raise ValueError(found.pruned[0].reason)


PARTS: dict[str, Callable[[_Work], None]] = {
    "test": _test,
    "predictions": _predictions,
    "spectra": _spectra,
    "saliency": _saliency,
    "frequencies": _frequencies,
    "filters": _filters,
    "class purity": _class_purity,
    "class features": _class_features,
    "groups": _groups,
    "class directions": _directions,
    "summary": _summary,
    "memory": _memory,
    "pruning": _pruning,
}


def _criterion(work: _Work) -> tuple[Criterion, str]:
    """Returns how filters are scored, scores or the name of a criterion, and the same in words."""
    network = work.subject.network
    if work.trainer is not None:
        scores = saliency(network, work.scoring("scoring filters"))
        return scores, f"explainfix, |w dc/dw|, on {work.found.scored:,} training images"
    if any(_alike_in_norm(m.bank) for m in network.modules() if isinstance(m, FixedConv)):
        return "random", "chance: the fixed filters are equally large in norm, and only data tells them apart"
    return "l1", "l1, the sum of |w|"


def _alike_in_norm(bank: FilterBank) -> bool:
    """Tells whether all filters of a layer have one norm: an index picks them of a basis, a transform by their sign."""
    return bank.index is not None or (bank.hadamard is not None and len(bank.hadamard.rows) == 1)


def _pruned(work: _Work, amount: float, criterion: Criterion) -> Pruned:
    """Prunes a copy as `explainfix prune` does by default, and tests it."""
    test = None
    try:
        report = channelprune(work.subject.network, work.images(1), amount=amount, criterion=criterion, bn_bias="drop")
        if work.trainer is not None:
            images, training = work.trainer.data, work.trainer.config
            small = Trainer(training, images, work.subject.device, network=report.model)
            test = small.evaluate(images.test)
    except Exception as error:  # a model may raise anything, and the other amounts shall still be tried
        return Pruned(amount, reason=first_line(error))
    return Pruned(amount, dataclasses.replace(report, model=None, original=None), test)
