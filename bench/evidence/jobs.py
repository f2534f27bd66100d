"""The runs behind the evidence: which networks are trained and pruned, and how one of them is run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext._support.files import write_atomic
from explainfix_ext.prune.score.criteria import CRITERIA as PRUNING_CRITERIA
from explainfix_ext.prune.score.criteria import Context, explainfix
from explainfix_ext.training.checkpoint import load_weights
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.metrics import PRIMARY
from explainfix_ext.training.network import make_network
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint
from explainfix_ext.training.runs import train_networks
from explainfix_ext.training.trainer import Trainer

from . import spectra

# As the authors group them (in fig_bbbc038v1_plots.py of their code DCT2 and Ones are not steered); kaiming_uniform by
# us.
UNSTEERED = ("ones", "kaiming_uniform", "dct2", "dct2@0.1")
STEERED = ("ghaar4_s1", "psine", "guided_steer")
OURS = ("auto", "sdct4")  # not of the paper: convert's default, and the four lowest functions with signs
SWEPT = "bottleneck"  # the network of the sweeps: pruning, density, learning rate, width
SWEPT_INITS = ("learned", "dct2", "ghaar4_s1")
CONTROL = "most_salient"  # the other way round
CRITERIA = ("explainfix", "random", CONTROL)
CHANNELS: dict[str, Any] = {"granularity": "channel", "weigh": "work"}  # the way of pruning that is timed


@dataclass(frozen=True)
class Scale:
    """How much is run. epochs: of each data set; rates, widths: beside the usual ones; limit: training images."""

    seeds: tuple[int, ...]
    inits: tuple[str, ...]
    epochs: dict[str, int]
    densities: tuple[float, ...]
    amounts: tuple[float, ...]
    rates: tuple[float, ...]
    widths: tuple[float, ...]
    tuning: int
    rounds: int
    limit: int | None = None


FULL = Scale(
    seeds=(0, 1, 2),
    inits=("learned", *UNSTEERED, *STEERED, *OURS),
    epochs={"pneumonia": 6, "mnist5k": 4, "nuclei": 8},
    densities=(0.3, 0.1, 0.03, 0.01, 0.001),
    amounts=(0.0, 0.5, 0.9, 0.97, 0.99, 0.999),
    rates=(1e-2, 3e-2, 1e-1),
    widths=(0.25, 0.5, 2),
    tuning=2,
    rounds=15,
)
QUICK = Scale(
    seeds=(0,),
    inits=("learned", "kaiming_uniform", "dct2", "dct2@0.1", "ghaar4_s1", "guided_steer", "auto"),
    epochs={"pneumonia": 2, "mnist5k": 2, "nuclei": 4},
    densities=(0.1, 0.01),
    amounts=(0.0, 0.9, 0.99),
    rates=(3e-2,),
    widths=(0.5,),
    tuning=1,
    rounds=5,
    limit=2000,
)

# Data set -> networks; all at 3e-3 and 64 images a step, but nuclei, of which there are 267.
NETWORKS = {
    "pneumonia": ("bottleneck", "densenet", "efficientnet"),
    "mnist5k": ("bottleneck", "densenet", "efficientnet"),
    "nuclei": ("unet_separable", "unet_plain"),
}
WITH_1X1 = {"nuclei": ("unet_plain",), "mnist5k": ("basicblock",)}  # that have no learned 1x1 of their own
USUAL = {"nuclei": {"lr": 1e-2, "batch_size": 8}}
USUAL_RATE = 3e-3


@dataclass(frozen=True)
class Job:
    """A network to train, or `prune`d from that of the job `after`, or only `looked_at`.

    Attributes:
        name: of its folder.
        data: the short name of its data set.
        after: the job whose network it prunes, looks at, or draws its filters from.
    """

    name: str
    data: str
    config: TrainConfig
    after: str | None = None
    prune: PruneConfig | None = None
    looked_at: bool = False


def most_salient(context: Context) -> dict[str, Tensor]:
    """Scores filters so that those go first which saliency would keep longest."""
    return {name: -scores for name, scores in explainfix(context).items()}


PRUNING_CRITERIA[CONTROL] = most_salient


def all_jobs(scale: Scale, specs: dict[str, str], runs: Path) -> Iterator[list[Job]]:
    """Lists of jobs: those of one list need only what lists before it made. The sweeps come last."""
    makers = [_Maker(scale, specs, runs, seed) for seed in scale.seeds]
    done: set[str] = set()
    for kind in (_Maker.table, _Maker.spectra, _Maker.sweeps, _Maker.prunings):
        for maker in makers:
            wave = {job.name: job for job in kind(maker) if job.name not in done}  # some of a sweep is in the table
            done.update(wave)
            for steered in (False, True):
                yield [job for job in wave.values() if (job.config.steering is not None) == steered]


@dataclass(frozen=True)
class _Maker:
    scale: Scale
    specs: dict[str, str]
    runs: Path
    seed: int

    def table(self) -> Iterator[Job]:
        for data, networks in NETWORKS.items():
            for network in networks:
                yield from (self.training(data, network, init) for init in self.scale.inits)
        for data, networks in WITH_1X1.items():
            for network in networks:
                yield self.training(data, network, "learned")
                yield from (self.training(data, network, i, pointwise=True) for i in ("dct2", "ghaar4_s1", "auto"))

    def sweeps(self) -> Iterator[Job]:
        yield from (self.training("pneumonia", SWEPT, f"dct2@{density}") for density in self.scale.densities)
        for init in SWEPT_INITS:
            yield from (self.training("pneumonia", SWEPT, init, lr=rate) for rate in self.scale.rates)
            yield from (self.training("pneumonia", f"{SWEPT}@{width}", init) for width in self.scale.widths)

    def training(self, data: str, network: str, init: str, **options: Any) -> Job:
        usual = {"lr": USUAL_RATE, **USUAL.get(data, {}), **options}
        source = None
        if init == "guided_steer":
            source = self.training(data, network, "learned").name
            usual["steering"] = str(self.runs / source / "steering.safetensors")
        config = TrainConfig(
            model=network,
            data=self.specs[data],
            init=init,
            epochs=self.scale.epochs[data],
            seed=self.seed,
            limit=self.scale.limit,
            **usual,
        )
        return Job(f"{data}-{network}-{config.label}-{config.lr:g}-seed{self.seed}", data, config, source)

    def spectra(self) -> Iterator[Job]:
        """Of the learned networks of the table."""
        for job in self.table():
            if job.config.init == "learned" and job.config.model in NETWORKS[job.data]:
                yield dataclasses.replace(job, name=f"spectra-{job.name}", after=job.name, looked_at=True)

    def prunings(self) -> Iterator[Job]:
        """Of the swept networks: single filters set to zero, and, as what is timed, whole channels removed.

        Zero of them are set to zero once, by no criterion.
        """
        for init in SWEPT_INITS[:2]:
            job = self.training("pneumonia", SWEPT, init)
            zeroed = [(a, criterion) for a in self.scale.amounts for criterion in (CRITERIA if a else CRITERIA[:1])]
            ways = [(*way, {"structured": False}) for way in zeroed]
            for amount, criterion, way in [*ways, (0.9, "explainfix", CHANNELS)]:
                how = PruneConfig(amount=amount, criterion=criterion, epochs=self.scale.tuning, **way)
                name = f"pruned-{amount}-{criterion}{'-channels' * how.structured}-{job.name}"
                yield dataclasses.replace(job, name=name, after=job.name, prune=how)


def described(job: Job) -> dict[str, Any]:
    """What a job's result is of: a result of another description is not this job's."""
    return vars(job.config) | {"prune": vars(job.prune) if job.prune else None}


def run(job: Job, runs: Path) -> dict[str, Any]:
    """What is known of a job, after running it if RUNS/<name>/job.json is not there.

    Raises:
        ValueError: the results there are of another configuration.
    """
    torch.set_num_threads(1)  # two jobs at once on two cores do more than one after the other on both
    file = runs / job.name / "job.json"
    expected = described(job)
    if not file.exists():
        found = _made(job, runs)
        text = json.dumps({"job": expected, **found}, indent=1)
        write_atomic(file, lambda out: out.write(text.encode()))
    found = json.loads(file.read_text())
    if json.loads(json.dumps(expected)) != found["job"]:
        raise ValueError(f"{file} is of another configuration: choose another --runs")
    return {"name": job.name, "data": job.data, **found}


def _made(job: Job, runs: Path) -> dict[str, Any]:
    if job.looked_at:
        return spectra.look_at(job.config, _checkpoint(job, runs))
    if job.prune is not None:
        folder = runs / job.name / "run"
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        if not job.prune.amount:
            return _tuned_whole(job, _checkpoint(job, runs), folder)
        try:
            found = prune_checkpoint(_checkpoint(job, runs), folder, job.prune, device="cpu")
        except FloatingPointError as error:
            return {"kind": "diverged", "error": str(error)}
        left = {key: found["report"][key] for key in ("pruned_filters", "parameters", "multiply_adds")}
        return {"kind": "pruned", "test": found["test"], "metric": found["metric"], **left}
    if job.after is not None:
        _fit_steering(job, runs)
    try:
        results = train_networks([job.config], runs / job.name, resume=True, device="cpu")
    except FloatingPointError as error:
        return {"kind": "diverged", "error": str(error)}
    (found,) = results["runs"]
    kept = ("test", "learned_parameters", "checkpoint_bytes", "fixed_layers", "spatial_layers_left")
    return {"kind": "trained", "metric": results["metric"], "label": job.config.label, **{k: found[k] for k in kept}}


def _tuned_whole(job: Job, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """What pruned networks are compared with: the whole one, with the same fine-tuning."""
    assert job.prune is not None
    images = load_dataset(job.config.data, job.config.seed)
    network, _ = make_network(job.config, images)
    load_weights(network, checkpoint)
    config = dataclasses.replace(job.config, epochs=job.prune.epochs)
    trainer = Trainer(config, images, torch.device("cpu"), network=network)
    before = trainer.evaluate(images.test)
    trainer.fit(folder, Observer())
    tests = {"unpruned": before, "pruned": before, "fine_tuned": trainer.evaluate(images.test)}
    return {"kind": "pruned", "test": tests, "metric": PRIMARY[images.task]}


def _fit_steering(job: Job, runs: Path) -> None:
    """GuidedSteer from the filters of the network that learned the same task."""
    assert job.after is not None
    assert job.config.steering is not None
    network, _ = make_network(_learned(job.config), load_dataset(job.config.data, job.config.seed))
    load_weights(network, _checkpoint(job, runs))
    efx.fit_steering(network, "guided").save(job.config.steering)


def _checkpoint(job: Job, runs: Path) -> Path:
    """Of the network that a job is made from."""
    assert job.after is not None
    config = job.config if job.looked_at or job.prune else _learned(job.config)
    return runs / job.after / config.label / "checkpoint.pt"


def _learned(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, init="learned", steering=None)
