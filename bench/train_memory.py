"""Trains a network on real images in each memory mode: the losses must be those of torch.

    python bench/train_memory.py --data FILE.npz [--model bottleneck] [--limit 1000] [--epochs 2]

In float64 `exact` and `recompute` differ from "off" by roundings; in float32 roundings grow as between two seeds,
which are shown beside. Prints a table and writes bench/results/train_memory.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from explainfix_ext._support.machine import hardware, versions
from explainfix_ext.memory import MODES
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.trainer import Trainer


def train(config: TrainConfig, dtype: torch.dtype, path: str) -> list[float]:
    """The training loss of each epoch."""
    torch.set_default_dtype(dtype)
    data = load_dataset(path, config.seed)
    images, *targets = data.train.tensors
    limited = TensorDataset(images[: config.limit].to(dtype), *(t[: config.limit] for t in targets))
    data = dataclasses.replace(data, train=limited)
    trainer = Trainer(config, data, torch.device("cpu"))
    trainer.network.to(dtype)
    # float() of the logits, which Trainer.forward does for mixed precision, would round what this compares.
    trainer.forward = lambda model, x: model(x)
    return [trainer._train_epoch(epoch, Observer()) for epoch in range(config.epochs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="bottleneck")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    for dtype in (torch.float64, torch.float32):
        runs = [(mode, 0) for mode in MODES] + ([("off", 1), ("off", 2)] if dtype == torch.float32 else [])
        for mode, seed in runs:
            config = TrainConfig(
                model=arguments.model,
                data=arguments.data,
                init="dct2",
                epochs=arguments.epochs,
                batch_size=32,
                limit=arguments.limit,
                seed=seed,
                memory=mode,
            )
            losses = train(config, dtype, arguments.data)
            rows.append({"dtype": str(dtype), "mode": mode, "seed": seed, "losses": losses})
            print(f"{dtype}  {mode:9}  seed {seed}  " + "  ".join(f"{loss:.12f}" for loss in losses), flush=True)
    about = {"model": arguments.model, "data": Path(arguments.data).name, "images": arguments.limit}
    about |= {"hardware": hardware(torch.device("cpu")), "versions": versions()}
    out = Path(__file__).parent / "results" / "train_memory.json"
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
