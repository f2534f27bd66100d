"""Trains InceptionTime on two data sets of the UCR archive, with learned and with fixed filters, beside MiniRocket.

    python bench/signals.py                       # 40 minutes on one core; begun again, it goes on where it was
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


if __name__ == "__main__":
    main()
