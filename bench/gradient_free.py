"""How well a network classifies that is trained without a single gradient, beside the same network learned.

    python bench/gradient_free.py [--out FILE.json]     # 10 minutes on 1 core

Digits (mnist5k), three seeds, each with a split of its own: 4,000 images to train, 500 to test. Without gradients:
every convolution is fixed, 1x1 included, normalisation sees the images once, and `fit_head` solves for the last layer;
for several ways to make the 1x1 and the spatial filters. With them: 5 epochs of AdamW. Rows that are in FILE are not
run again. Seconds are of the processor, in one thread: other work on the machine makes them longer, too.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import explainfix_ext as efx
from explainfix_ext._support.files import write_atomic
from explainfix_ext._support.machine import hardware, versions
from explainfix_ext._support.models import is_spatial
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.models import build_model

RESULTS = Path(__file__).parent / "results"
SEEDS, EPOCHS = (0, 1, 2), 5
Batches = list[tuple[Tensor, Tensor]]


def two_layers() -> nn.Module:
    """A network as Saab's authors took for digits: two convolutions of 5x5, each with ReLU and pooling."""
    layers = [nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bottleneck": lambda: build_model("bottleneck", 1, 10),
    "bottleneck@2": lambda: build_model("bottleneck@2", 1, 10),
    "two layers": two_layers,
}

# How 1x1 layers are made, the other filters being "auto" -------------------------------------------------------------


def orthogonal(name: str, conv: nn.Conv2d) -> efx.FilterBank:
    return efx.FilterBank.from_weight(nn.init.orthogonal_(torch.empty_like(conv.weight)))


MIXES: dict[str, Any] = {
    "normal": lambda name, conv: "auto" if is_spatial(conv) else "ghaar4_s1",
    "unchanged": lambda name, conv: "auto" if is_spatial(conv) else "unchanged",
    "orthogonal": lambda name, conv: "auto" if is_spatial(conv) else orthogonal(name, conv),
}
WAYS = {
    "bottleneck": ["auto", "learned", "auto, 1x1 learned", *(f"auto, 1x1 {name}" for name in MIXES)],
    "bottleneck@2": ["auto", "learned"],
    "two layers": ["auto", "learned"],
}
for network in ("bottleneck", "two layers"):  # other spatial filters, with 1x1 of "auto"
    WAYS[network] += ["dct2", "ghaar4_s1", "saab spatial", "saab joint"]


def train(model: nn.Module, train: TensorDataset, seed: int) -> None:
    """Trains as usual, by gradients."""
    loader = DataLoader(train, 64, shuffle=True, generator=torch.Generator().manual_seed(seed), drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=EPOCHS * len(loader))
    for _ in range(EPOCHS):
        for x, y in loader:
            cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def without_gradients(model: nn.Module, way: str, batches: Batches, seed: int) -> None:
    mix, mode = MIXES.get(way.removeprefix("auto, 1x1 ")), way.removeprefix("saab ")
    efx.convert(model, mix or (way if mode == way else "auto"), include_pointwise=True, seed=seed)
    with torch.no_grad():
        if mode != way:
            for name, bank in efx.fit_saab(model, batches, mode, seed=seed).items():
                model.get_submodule(name).bank = bank
        torch.optim.swa_utils.update_bn(batches, model)
        efx.fit_head(model, batches)


def measure(network: str, way: str, seed: int) -> dict[str, Any]:
    """One row: test accuracy, and processor seconds from the untrained network to the trained one."""
    digits = load_dataset("mnist5k", seed=seed)
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(seed))  # it is sorted by class
    x, y = (t[order] for t in digits.train.tensors)
    begin = time.process_time()
    if "learned" in way:
        if way != "learned":
            efx.convert(model, "auto", seed=seed)
        train(model, digits.train, seed)
    else:
        without_gradients(model, way, list(zip(x.split(250), y.split(250), strict=True)), seed)
    seconds = time.process_time() - begin
    images, classes = digits.test.tensors
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == classes).double().mean()
    learned = sum(p.numel() for p in model.parameters()) if "learned" in way else _last_layer(model)
    return {"net": network, "way": way, "seed": seed, "right": float(right), "seconds": seconds, "learned": learned}


def _last_layer(model: nn.Module) -> int:
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return sum(p.numel() for p in last.parameters())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "gradient_free_cpu.json")
    out = parser.parse_args(argv).out
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    known = {(row["net"], row["way"], row["seed"]) for row in rows}
    jobs = [(network, way, seed) for seed in SEEDS for network in NETWORKS for way in WAYS[network]]
    about = {"hardware": hardware(torch.device("cpu")), "versions": versions(), "epochs": EPOCHS}
    for job in track([job for job in jobs if job not in known], "gradient free"):
        rows.append(measure(*job))
        text = json.dumps({**about, "rows": rows}, indent=1) + "\n"
        write_atomic(out, lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    main()
