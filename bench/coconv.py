"""CoConv beside the plain network: does splitting channels over dilations help, learned or fixed?

    python bench/coconv.py [--only-page] [--out bench/results/coconv_cpu.json]

Trains each network of NETWORKS plain and with the levels of CoResNet (four dilations in the first stage, three in the
second, two in the third, one in the last), learned and fixed, for three seeds. Writes each result as it comes; what is
in the file is not trained again. Then draws the picture and prints the table. Times nothing.
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
# Data set, network, epochs, whether a learned 1x1 follows each fixed filter: a basic block has none of its own.
NETWORKS = [("mnist5k", "basicblock", 4, True), ("pneumoniamnist.npz", "bottleneck", 3, False)]
INITS, SEEDS = ("learned", "dct2", "auto"), (0, 1, 2)
KEY = ("data", "model", "init", "coconv", "seed")


def jobs() -> Iterator[dict[str, Any]]:
    """What is trained, seed after seed: an interrupted run leaves whole seeds."""
    for (data, model, epochs, pointwise), seed in itertools.product(NETWORKS, SEEDS):
        for init, coconv in itertools.product(INITS, (False, True)):
            about = {"data": Path(data).stem, "model": model, "init": init, "coconv": coconv, "seed": seed}
            yield about | {"spec": data, "epochs": epochs, "pointwise": pointwise and init != "learned"}


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


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains and tests one network."""
    spec = job["spec"] if job["spec"] == "mnist5k" else str(folder / job["spec"])
    settings = {name: job[name] for name in ("model", "init", "pointwise", "epochs", "seed")}
    config = TrainConfig(data=spec, **settings)
    images = load_dataset(spec, config.seed)
    model = network(config, images, job["coconv"])
    trainer = Trainer(config, images, torch.device("cpu"), network=model)
    with tempfile.TemporaryDirectory() as runs:
        trainer.fit(Path(runs), Observer())
    row = {key: job[key] for key in (*KEY, "epochs", "pointwise")}
    history = [{k: v for k, v in record.items() if "seconds" not in k} for record in trainer.history]
    scores = trainer.evaluate(images.test)
    return row | {"test": scores, "learned_parameters": learned_parameters(model), "history": history}


def groups(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], str, bool, list[dict[str, Any]]]]:
    """Rows that differ in the seed alone, in the order of `jobs`."""
    for (data, model, *_), init, coconv in itertools.product(NETWORKS, INITS, (False, True)):
        kind = (Path(data).stem, model, init, coconv)
        if found := [row for row in rows if tuple(row[key] for key in KEY[:4]) == kind]:
            yield (kind[0], model), init, coconv, found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of RESULTS.md: mean and standard deviation of the test scores over the seeds."""
    lines = ["| data | network | filters | convolution | accuracy | auroc | learned parameters | seeds |"]
    lines.append("| " + " | ".join(["---"] * 8) + " |")
    for (data, model), init, coconv, found in groups(rows):
        scores = []
        for name in ("accuracy", "auroc"):
            values = [row["test"][name] for row in found if name in row["test"]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            scores.append(f"{statistics.mean(values):.4f} +- {spread:.4f}" if values else "")
        mixed = " + 1x1" if found[0]["pointwise"] else ""
        kind = "CoConv" if coconv else "plain"
        cells = (data, f"`{model}`", f"`{init}`{mixed}", kind, *scores, f"{found[0]['learned_parameters']:,}")
        lines.append("| " + " | ".join((*cells, str(len(found)))) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Test accuracy of each seed, plain and CoConv side by side; a picture for each network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    pictures = dict(zip([(Path(data).stem, model) for data, model, *_ in NETWORKS], figure.subplots(1, 2), strict=True))
    for where, init, coconv, found in groups(rows):
        x = INITS.index(init) + (0.15 if coconv else -0.15)
        values = [row["test"]["accuracy"] for row in found]
        colour = "C1" if coconv else "C0"
        label = ("CoConv" if coconv else "plain") if init == INITS[0] else None
        pictures[where].plot([x] * len(values), values, "o", color=colour, alpha=0.6, label=label)
        pictures[where].hlines(statistics.mean(values), x - 0.1, x + 0.1, color=colour)
    for (data, model), axes in pictures.items():
        axes.set(title=f"{data}, {model}", ylabel="test accuracy", xticks=range(len(INITS)), xticklabels=INITS)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("../shared/data"), help="of pneumoniamnist.npz")
    parser.add_argument("--out", type=Path, default=RESULTS / "coconv_cpu.json")
    parser.add_argument("--only-page", action="store_true", help="draw and print what is there")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    known = {tuple(row[key] for key in KEY) for row in rows}
    left = [] if arguments.only_page else [job for job in jobs() if tuple(job[key] for key in KEY) not in known]
    about = {"hardware": hardware(torch.device("cpu")), "versions": versions()}
    about["levels"] = {glob: list(dilations) for glob, dilations in LEVELS.items()}
    for job in track(left, "training"):
        rows.append(run(job, arguments.folder))
        arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    plot(rows, arguments.out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
