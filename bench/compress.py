"""What compressing learned filters to few basis functions costs in accuracy and saves in work.

    python bench/compress.py [--data mnist5k FILE.npz] [--models bottleneck basicblock] [--runs RUNS] [--out FILE.json]

Trains each network, learned, on each data set; fixes its filters by convert(model, "unchanged", energy=e) for energies
from 0.5 to 1, and tests it: as it is; with the lost energy given back (energy_transfer=True, LRPET); and after one more
epoch of training what is not a filter. Trained networks that are in RUNS are not trained again. Times nothing.
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
WAYS = {"as it is": "o-", "energy given back": "x:", "one epoch after": "s--"}


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
        layers = efx.summary(compressed, (1, *images.train[0][0].shape)).layers
        scores = {"energy given back": test(given_back, config, images), "as it is": test(compressed, config, images)}
        scores["one epoch after"] = tuned(compressed, config, images)
        work = [sum(getattr(layer, name) for layer in layers) for name in ("multiply_adds", "dense_multiply_adds")]
        ranks = {layer.name: [layer.rank, layer.shape[2] * layer.shape[3]] for layer in layers}
        yield about | {"energy": energy, "test": scores, "multiply_adds": work, "functions": ranks}


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
                accuracy = [row["test"][way]["accuracy"] for row in found]
                shares = [row["multiply_adds"][0] / row["multiply_adds"][1] for row in found]
                for axes, x in zip(pair, ([row["energy"] for row in found], shares), strict=True):
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
    parser.add_argument("--out", type=Path, default=RESULTS / "compress.json")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    pairs = [(model, data) for data in arguments.data for model in arguments.models]
    for config in [TrainConfig(model=model, data=data, epochs=EPOCHS) for model, data in pairs]:
        description = f"{config.model} on {config.data}"
        rows += track(measure(config, arguments.runs), description, total=1 + len(ENERGIES))
    about = {"hardware": hardware(torch.device("cpu")), "versions": versions(), "epochs": EPOCHS, "tuning": TUNING}
    arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    plot(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
