"""CoConv beside the plain network: does splitting channels over dilations help, learned or fixed?

    python bench/coconv.py [--only-page] [--out bench/results/coconv_cpu.json]

Trains a residual network on MNIST, plain and with the levels of CoResNet (four dilations in the first stage, three in
the second, two in the third, one in the last), learned and fixed, for three seeds. Writes each result as it comes; what
is in the file is not trained again. Then draws the picture and prints the table. Times nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
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
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.costs import learned_parameters
from explainfix_ext.training.data import Dataset, load_dataset
from explainfix_ext.training.models import build_model
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
LEVELS = {"layer1.*": (1, 2, 3, 4), "layer2.*": (1, 2, 3), "layer3.*": (1, 2)}
DATA, MODEL, EPOCHS = "mnist5k", "basicblock", 4
INITS, SEEDS = ("learned", "dct2", "auto"), (0, 1, 2)
KEY = ("init", "coconv", "seed")


def jobs() -> Iterator[dict[str, Any]]:
    """What is trained, seed after seed: an interrupted run leaves whole seeds."""
    for seed, init, coconv in itertools.product(SEEDS, INITS, (False, True)):
        yield {"init": init, "coconv": coconv, "seed": seed}


def network(config: TrainConfig, images: Dataset, coconv: bool) -> nn.Module:
    """Builds a network; the random weights of a seed are the same for all of them."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, images.channels, images.outputs)
    dilations = LEVELS if coconv else None
    if config.init != "learned":
        efx.convert(model, config.init, seed=config.seed, pointwise=config.pointwise, dilations=dilations)
    elif coconv:
        efx.convert(model, "unchanged", dilations=dilations)
        efx.revert(model, requires_grad=True)
    return model


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Trains and tests one network. A learned 1x1 follows each fixed filter: a basic block has none of its own."""
    settings = {"init": job["init"], "pointwise": job["init"] != "learned", "seed": job["seed"]}
    config = TrainConfig(data=DATA, model=MODEL, epochs=EPOCHS, **settings)
    images = load_dataset(DATA, config.seed)
    model = network(config, images, job["coconv"])
    trainer = Trainer(config, images, torch.device("cpu"), network=model)
    with tempfile.TemporaryDirectory() as runs:
        trainer.fit(Path(runs), Observer())
    history = [{k: v for k, v in record.items() if "seconds" not in k} for record in trainer.history]
    found = {"test": trainer.evaluate(images.test), "learned_parameters": learned_parameters(model)}
    return job | found | {"history": history}


def groups(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, bool, list[dict[str, Any]]]]:
    """Rows that differ in the seed alone, in the order of `jobs`."""
    for init, coconv in itertools.product(INITS, (False, True)):
        if found := [row for row in rows if (row["init"], row["coconv"]) == (init, coconv)]:
            yield init, coconv, found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of RESULTS.md: test accuracy of each seed, and their mean."""
    head = ("filters", "convolution", *(f"seed {seed}" for seed in SEEDS), "mean", "learned parameters")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for init, coconv, found in groups(rows):
        accuracy = [row["test"]["accuracy"] for row in found]
        numbers = [f"{value:.3f}" for value in (*accuracy, statistics.mean(accuracy))]
        cells = (f"`{init}`", "CoConv" if coconv else "plain", *numbers, f"{found[0]['learned_parameters']:,}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the test accuracy of each seed and their mean, plain and CoConv side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for init, coconv, found in groups(rows):
        x = INITS.index(init) + (0.15 if coconv else -0.15)
        values = [row["test"]["accuracy"] for row in found]
        colour, name = ("C1", "CoConv") if coconv else ("C0", "plain")
        axes.plot([x] * len(values), values, "o", color=colour, alpha=0.6, label=name if init == INITS[0] else None)
        axes.hlines(statistics.mean(values), x - 0.1, x + 0.1, color=colour)
    axes.set(title=f"{DATA}, {MODEL}", ylabel="test accuracy", xticks=range(len(INITS)), xticklabels=INITS)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "coconv_cpu.json")
    parser.add_argument("--only-page", action="store_true", help="draw and print what is there")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    known = {tuple(row[key] for key in KEY) for row in rows}
    left = [] if arguments.only_page else [job for job in jobs() if tuple(job[key] for key in KEY) not in known]
    about = {"hardware": hardware(torch.device("cpu")), "versions": versions()}
    about |= {"data": DATA, "model": MODEL, "epochs": EPOCHS}
    about["levels"] = {glob: list(dilations) for glob, dilations in LEVELS.items()}
    for job in track(left, "training"):
        rows.append(run(job))
        arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    plot(rows, arguments.out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
