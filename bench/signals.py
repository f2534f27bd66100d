"""Trains InceptionTime on two data sets of the UCR archive, with learned and with fixed filters, beside MiniRocket.

The network is half as wide as the published one, which is fast enough for one core.

    python bench/signals.py                       # half an hour on one core; begun again, it goes on where it was
    python bench/signals.py --data GunPoint --init learned,dct2 --seeds 1 --epochs 2

It writes bench/results/signals_cpu.json after each run, and signals_cpu.png at the end. The data sets come with sktime
or aeon; MiniRocket is aeon's. As the archive has it, networks train on all training series and are tested on the test
series, with the weights of the last epoch: nothing is chosen by the test.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from explainfix_ext._support import machine
from explainfix_ext._support.files import write_atomic
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.costs import learned_parameters
from explainfix_ext.training.data import Dataset, load_dataset
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.trainer import Trainer

OUT = Path(__file__).parent / "results" / "signals_cpu.json"
# Accuracy of InceptionTime on the archive's own split: a single network, mean of ten (Ismail Fawaz et al. 2020).
PUBLISHED = {"ItalyPowerDemand": 0.968, "GunPoint": 1.0}
INITS = ("learned", "dct2", "ghaar4_s1", "hadamard")


def whole(data: Dataset) -> Dataset:
    """Returns the data set with all training series for training, also the tenth that is held back for curves."""
    pairs = zip(data.train.tensors, data.val.tensors, strict=True)
    return dataclasses.replace(data, train=TensorDataset(*(torch.cat(pair) for pair in pairs)))


def train(name: str, init: str, seed: int, epochs: int, model: str) -> dict[str, Any]:
    """Trains one network and returns its accuracy on the test series."""
    spec = {"data": f"ucr:{name}", "model": model, "init": init, "seed": seed, "epochs": epochs}
    config = TrainConfig(**spec, batch_size=16, lr=1e-3)
    trainer = Trainer(config, whole(load_dataset(config.data, seed)), torch.device("cpu"))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(Path(folder), Observer())
    seconds = time.perf_counter() - start
    scores = trainer.evaluate(trainer.data.test)
    return spec | {
        "accuracy": scores["accuracy"], "train_loss": trainer.history[-1]["train_loss"], "seconds_shared_core": seconds,
        "learned_parameters": learned_parameters(trainer.network),
    }  # fmt: skip


def minirocket(name: str, seed: int) -> dict[str, Any]:
    """Trains aeon's MiniRocket, 10,000 fixed kernels and a ridge classifier."""
    from aeon.classification.convolution_based import MiniRocketClassifier

    data = whole(load_dataset(f"ucr:{name}", seed))
    (x, y), (test_x, test_y) = (tuple(t.numpy() for t in part.tensors) for part in (data.train, data.test))
    start = time.perf_counter()
    accuracy = MiniRocketClassifier(random_state=seed).fit(x, y).score(test_x, test_y)
    seconds = time.perf_counter() - start
    return {"data": f"ucr:{name}", "model": "MiniRocket", "init": "-", "seed": seed, "accuracy": float(accuracy),
            "seconds_shared_core": seconds}  # fmt: skip


def rows(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Returns (data, network) -> accuracies in %, by seed, and numbers of learned parameters."""
    table: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in found["runs"]:
        name = "MiniRocket" if run["model"] == "MiniRocket" else run["init"]
        row = table.setdefault((run["data"].removeprefix("ucr:"), name), {"accuracy": [], "learned": []})
        row["accuracy"].append(100 * run["accuracy"])
        row["learned"].append(run.get("learned_parameters"))
    return table


def markdown(found: dict[str, Any]) -> str:
    """Returns a table: mean over seeds, and each seed's accuracy."""
    lines = ["| data | filters | test accuracy, % | by seed | learned parameters |", "| --- | --- | --- | --- | --- |"]
    order = [*INITS, "MiniRocket"]
    for (data, name), row in sorted(rows(found).items(), key=lambda item: (item[0][0], order.index(item[0][1]))):
        by_seed = ", ".join(f"{a:.1f}" for a in row["accuracy"])
        mean = sum(row["accuracy"]) / len(row["accuracy"])
        learned = f"{row['learned'][0]:,}" if row["learned"][0] else "-"
        lines.append(
            f"| {data} | {name if name == 'MiniRocket' else f'`{name}`'} | {mean:.1f} | {by_seed} | {learned} |"
        )
    published = [f"| {data} | published, InceptionTime | {100 * a:.1f} | | |" for data, a in found["published"].items()]
    return "\n".join(lines + published)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draws the accuracy of each seed, and the published one as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    table = rows(found)
    figure, axes = plt.subplots(1, len(found["published"]), figsize=(9, 2.6), layout="constrained", sharey=True)
    for ax, (data, accuracy) in zip(axes, found["published"].items(), strict=True):
        names = [name for name in (*INITS, "MiniRocket") if (data, name) in table]
        for y, name in enumerate(names):
            values = table[data, name]["accuracy"]
            ax.plot(
                values, [y] * len(values), "o", alpha=0.6, color="C1" if name in ("learned", "MiniRocket") else "C0"
            )
        ax.axvline(100 * accuracy, color="0.4", linestyle="--", linewidth=1)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set(yticks=range(len(names)), yticklabels=names, title=data, xlabel="test accuracy, %")
    axes[0].invert_yaxis()
    figure.suptitle("InceptionTime, half as wide: each seed; dashed: InceptionTime as published", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(PUBLISHED))
    parser.add_argument("--init", default=",".join(INITS))
    parser.add_argument("--model", default="inceptiontime@0.5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {"published": PUBLISHED, "runs": []}
    done = {(r["data"], r["model"], r["init"], r["seed"]) for r in found["runs"]}
    jobs = [
        (name, model, init, seed)
        for seed in range(options.seeds)
        for name in options.data.split(",")
        for model, init in [*((options.model, init) for init in options.init.split(",")), ("MiniRocket", "-")]
    ]
    for name, model, init, seed in jobs:
        if (f"ucr:{name}", model, init, seed) in done:
            continue
        run = minirocket(name, seed) if model == "MiniRocket" else train(name, init, seed, options.epochs, model)
        print(name, model, init, seed, f"{run['accuracy']:.4f}", f"{run['seconds_shared_core']:.0f} s", flush=True)
        found["runs"].append(run)
        found |= {"hardware": machine.hardware(torch.device("cpu")), "versions": machine.versions()}
        text = json.dumps(found, indent=1)
        write_atomic(options.out, lambda file: file.write(text.encode()))  # noqa: B023
    print(markdown(found))
    draw(found, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
