"""Which filters should stay, when few of the fixed ones are to be used from the start.

    python bench/masks.py [--pneumonia FILE.npz] [--out FILE.json]

Trains networks of bench/claims.py with a share of the `dct2` filters, three seeds, as long as there, and draws the test
scores. Rows that are in FILE.json are not made again. Ways of choosing:

- random: from all layers alike, as `density` did before stems and depthwise layers kept all filters;
- density: `convert(density=)`, random, with stems and depthwise layers whole;
- saliency: the filters with the highest |w dc/dw| of the whole network, before training or after a quarter of it;
- learned: masks with straight-through gradients (edge-popup), the highest scores of the network being used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext._support.machine import hardware, versions
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.prune.cut.layers import zero_filters_
from explainfix_ext.prune.score.select import effective_limit, lowest
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import Dataset, load_dataset
from explainfix_ext.training.network import make_network
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
EPOCHS = {"mnist5k": 4, "pneumoniamnist": 6}
SCORED_BATCHES = 10
# (data, model, density, way); the first are those that the figures asked for
CASES = (
    ("mnist5k", "bottleneck", 0.1, "density"),
    ("pneumoniamnist", "bottleneck", 0.01, "density"),
    ("mnist5k", "bottleneck", 1.0, "density"),
    ("pneumoniamnist", "bottleneck", 1.0, "density"),
    ("mnist5k", "bottleneck", 0.1, "random"),
    ("mnist5k", "bottleneck", 0.1, "saliency, before training"),
    ("mnist5k", "bottleneck", 0.1, "saliency, after a quarter"),
    ("mnist5k", "bottleneck", 0.1, "learned"),
    ("mnist5k", "efficientnet", 0.1, "density"),
)


class Straight(torch.autograd.Function):
    """Gives the mask forward, and its gradient to the scores that it was made of backward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor) -> Tensor:
        return mask.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class MaskedConv2d(nn.Module):
    """A convolution by fixed filters times a mask, whose scores are learned."""

    def __init__(self, conv: FixedConv2d) -> None:
        super().__init__()
        self.conv, self.weight = conv, conv.weight.detach()
        self.scores = nn.Parameter(torch.rand(self.weight.shape[:2]))
        self.mask = torch.ones(self.weight.shape[:2])

    def forward(self, x: Tensor) -> Tensor:
        mask = Straight.apply(self.scores, self.mask)[:, :, None, None]
        c = self.conv
        return F.conv2d(x, self.weight * mask, c.bias, c.stride, c.padding, c.dilation, c.groups)


class Masking(Trainer):
    """A Trainer that chooses filters: once, before an update, or at every update."""

    def choose(self, density: float, way: str) -> None:
        self.density, self.way, self.updates = density, way, 0
        self.masked = {n: m for n, m in self.network.named_modules() if isinstance(m, MaskedConv2d)}
        learned = {id(m.scores) for m in self.masked.values()}
        if learned:
            self.optimizer.param_groups[0]["params"] = [
                p for p in self.optimizer.param_groups[0]["params"] if id(p) not in learned
            ]
            self.score_optimizer = torch.optim.SGD([m.scores for m in self.masked.values()], 0.1, momentum=0.9)
            self.use_highest()
        if way == "random":
            scores = {n: torch.rand(m.weight.shape[:2]) for n, m in fixed_layers(self.network).items()}
            for name, zero in lowest(scores, 1 - density, "layer", 1.0).items():
                zero_filters_(self.network.get_submodule(name), zero)
        if way.endswith("before training"):
            self.keep_salient()

    def keep_salient(self) -> None:
        batches = list(islice(self.train_loader, SCORED_BATCHES))
        scores = efx.saliency(self.network, batches)
        zero = lowest(scores, 1 - self.density, "global", effective_limit(1 - self.density, 0.95))
        for name, mask in zero.items():
            zero_filters_(self.network.get_submodule(name), mask)

    def use_highest(self) -> None:
        scores = {name: m.scores.detach() for name, m in self.masked.items()}
        zero = lowest(scores, 1 - self.density, "global", effective_limit(1 - self.density, 0.95))
        for name, m in self.masked.items():
            m.mask.copy_(~zero[name])

    def _update(self) -> None:
        if self.masked:
            self.score_optimizer.step()
            self.score_optimizer.zero_grad()
            self.use_highest()
        if self.way.endswith("after a quarter") and self.updates == self.config.epochs * len(self.train_loader) // 4:
            self.keep_salient()
        self.updates += 1
        super()._update()


def fixed_layers(network: nn.Module) -> dict[str, FixedConv2d]:
    return {name: m for name, m in network.named_modules() if isinstance(m, FixedConv2d)}


def measure(data: str, images: Dataset, case: tuple[str, str, float, str], seed: int) -> dict[str, Any]:
    """A row of the table: what one network reaches."""
    name, model, density, way = case
    init = f"dct2@{density}" if way == "density" else "dct2"
    config = TrainConfig(model=model, data=data, init=init, epochs=EPOCHS[name], seed=seed)
    network, _ = make_network(config, images)
    if way == "learned":
        for layer, conv in fixed_layers(network).items():
            network.set_submodule(layer, MaskedConv2d(conv))
    trainer = Masking(config, images, torch.device("cpu"), network=network)
    trainer.choose(density, way)
    row = {"data": name, "model": model, "density": density, "way": way, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer.fit(Path(folder), Observer())
        except FloatingPointError as error:
            return row | {"diverged": str(error)}
    masks = {n: m.mask for n, m in trainer.masked.items()}
    kept = masks or {n: m.bank.nonzero for n, m in fixed_layers(network).items()}
    shares = {n: float(mask.double().mean()) for n, mask in kept.items()}
    return row | {"test": trainer.evaluate(images.test), "kept": shares}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pneumonia", default="../shared/data/pneumoniamnist.npz")
    parser.add_argument("--out", type=Path, default=RESULTS / "masks_cpu.json")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    done = {(r["data"], r["model"], r["density"], r["way"], r["seed"]) for r in rows}
    places = {"mnist5k": "mnist5k", "pneumoniamnist": arguments.pneumonia}
    about = {"hardware": hardware(torch.device("cpu")), "versions": versions()}
    for case, seed in track([(c, s) for c in CASES for s in SEEDS if (*c, s) not in done], "train"):
        data = places[case[0]]
        rows.append(measure(data, load_dataset(data, seed), case, seed))
        arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
