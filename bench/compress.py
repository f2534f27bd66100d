"""What compressing learned filters to few basis functions costs in accuracy and saves in work.

    python bench/compress.py [--data mnist5k FILE.npz] [--models bottleneck basicblock] [--runs RUNS] [--out FILE.json]

Trains each network, learned, on each data set; fixes its filters by convert(model, "unchanged", energy=e) for energies
from 0.5 to 1, and tests it: as it is; with the lost energy given back (energy_transfer=True, LRPET); and after one more
epoch of training what is not a filter. --soft 0.5 0.7 also trains each network with soft_low_rank after each epoch at
these energies, which is then fixed at the ranks that it has. Trained networks that are in RUNS are not trained again,
and rows that are in FILE.json are not made again. Times nothing.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import nn

import explainfix_ext as efx
from explainfix_ext._support.machine import hardware, versions
from explainfix_ext.training.checkpoint import load_weights
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import Dataset, load_dataset
from explainfix_ext.training.network import make_network
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.runs import train_networks
from explainfix_ext.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
ENERGIES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
EPOCHS, TUNING = 6, 1
WAYS = {"as it is": "o-", "energy given back": "x:", "one epoch after": "s--", "low rank in training": "^-."}
SOFT = "low rank in training"


def measure(config: TrainConfig, runs: Path) -> Iterator[dict[str, Any]]:
    """A row for the learned network, then one for each energy."""
    images = load_dataset(config.data, config.seed)
    folder = runs / f"{Path(config.data).stem}-{config.model}"
    train_networks([config], folder, resume=True, device="cpu")
    network, _ = make_network(config, images)
    load_weights(network, folder / config.label / "checkpoint.pt")
    about = {"data": Path(config.data).stem, "model": config.model}
    yield about | {"energy": None, "test": {"learned": test(network, config, images)}}
    for energy in ENERGIES:
        given_back, compressed = copy.deepcopy(network), copy.deepcopy(network)
        efx.convert(given_back, "unchanged", energy=energy, energy_transfer=True)
        efx.convert(compressed, "unchanged", energy=energy)
        scores = {"energy given back": test(given_back, config, images), "as it is": test(compressed, config, images)}
        scores["one epoch after"] = tuned(compressed, config, images)
        yield about | {"energy": energy, "test": scores, **work_of(compressed, images)}


def measure_soft(config: TrainConfig, energy: float, images: Dataset) -> dict[str, Any]:
    """A row for a network whose filters came to a low rank while it was trained."""
    trainer = Trainer(config, images, torch.device("cpu"))

    class Projected(Observer):
        """The energy sets the ranks after the first epoch; they stay."""

        def __init__(self) -> None:
            self.how: dict[str, Any] = {"energy": energy}

        def epoch(self, record: dict[str, Any]) -> None:
            self.how = {"rank": efx.soft_low_rank(trainer.network, images.train[:1][0], **self.how)}

    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(Path(folder), Projected())
    efx.convert(trainer.network, "unchanged", energy=0.9999)
    about = {"data": Path(config.data).stem, "model": config.model, "energy": energy, "way": SOFT}
    return about | {"test": {SOFT: test(trainer.network, config, images)}, **work_of(trainer.network, images)}


def work_of(network: nn.Module, images: Dataset) -> dict[str, Any]:
    """Multiply-adds and those of dense convolutions; layer -> functions of its bank and pixels of a filter."""
    layers = efx.summary(network, (1, *images.train[0][0].shape)).layers
    work = [sum(getattr(layer, name) for layer in layers) for name in ("multiply_adds", "dense_multiply_adds")]
    return {"multiply_adds": work, "functions": {n.name: [n.rank, n.shape[2] * n.shape[3]] for n in layers}}


def test(network: nn.Module, config: TrainConfig, images: Dataset) -> dict[str, float]:
    return Trainer(config, images, torch.device("cpu"), network=network).evaluate(images.test)


def tuned(network: nn.Module, config: TrainConfig, images: Dataset) -> dict[str, float]:
    """Test scores after one more epoch; the filters stay."""
    config = dataclasses.replace(config, epochs=TUNING, lr=config.lr / 3)
    trainer = Trainer(config, images, torch.device("cpu"), network=network)
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(Path(folder), Observer())
    return trainer.evaluate(images.test)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Test accuracy against the energy kept and the multiply-adds; a row of pictures for each data set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, models = (list(dict.fromkeys(row[key] for row in rows)) for key in ("data", "model"))
    figure = Figure(figsize=(10, 3.6 * len(names)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for pair, data in zip(figure.subplots(len(names), 2, sharey="row", squeeze=False), names, strict=True):
        for colour, model in enumerate(models):
            learned, *found = (row for row in rows if (row["data"], row["model"]) == (data, model))
            for way, style in WAYS.items():
                if not (mine := [row for row in found if way in row["test"]]):
                    continue
                accuracy = [row["test"][way]["accuracy"] for row in mine]
                shares = [row["multiply_adds"][0] / row["multiply_adds"][1] for row in mine]
                for axes, x in zip(pair, ([row["energy"] for row in mine], shares), strict=True):
                    axes.plot(x, accuracy, style, color=f"C{colour}", markersize=4, label=f"{model}, {way}")
            for axes in pair:
                axes.axhline(learned["test"]["learned"]["accuracy"], color=f"C{colour}", linewidth=0.8, alpha=0.6)
                axes.grid(alpha=0.3)
        pair[0].set(xlabel="share of the squared norm kept", ylabel="test accuracy", title=f"{data}; line: learned")
        pair[1].set(xlabel="multiply-adds, of a dense convolution's", title="the same networks by what they compute")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["mnist5k", "../shared/data/pneumoniamnist.npz"])
    parser.add_argument("--models", nargs="+", default=["bottleneck", "basicblock"])
    parser.add_argument("--runs", type=Path, default=Path("runs/compress"))
    parser.add_argument("--soft", nargs="*", type=float, default=[], help="energies for soft_low_rank in training")
    parser.add_argument("--out", type=Path, default=RESULTS / "compress.json")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    about = {"hardware": hardware(torch.device("cpu")), "versions": versions(), "epochs": EPOCHS, "tuning": TUNING}

    def write() -> None:
        arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
        plot(rows, arguments.out.with_suffix(".png"))

    pairs = [(model, data) for data in arguments.data for model in arguments.models]
    for config in [TrainConfig(model=model, data=data, epochs=EPOCHS) for model, data in pairs]:
        mine = [row for row in rows if (row["data"], row["model"]) == (Path(config.data).stem, config.model)]
        if not mine:
            rows += track(measure(config, arguments.runs), f"{config.model} on {config.data}", 1 + len(ENERGIES))
            write()
        images = load_dataset(config.data, config.seed)
        done = [row["energy"] for row in mine if row.get("way") == SOFT]
        for energy in track([e for e in arguments.soft if e not in done], f"{SOFT}, {config.model}"):
            rows.append(measure_soft(config, energy, images))
            write()


if __name__ == "__main__":
    main()
