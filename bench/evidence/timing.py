"""Claim (f): time of a training step, learned, fixed, sparse and pruned, interleaved in one process."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext._support.timing import interleaved, keep_memory
from explainfix_ext.training.models import build_model

# Name -> input; weights and images are random: which channels go is by chance, how many of each layer nearly not.
NETWORKS = {
    "bottleneck": (64, 1, 28, 28),
    "densenet": (64, 1, 28, 28),
    "unet_separable": (8, 1, 96, 96),
    "torchvision:resnet50": (4, 3, 128, 128),
}
WAYS = ("learned", "learned, 90 % pruned", "dct2", "dct2@0.1", "ghaar4_s1", "dct2, 90 % pruned")


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """A row for each network: seconds of a step (forward and backward) and learned parameters by way."""
    keep_memory()
    rows = []
    for name, shape in track(list(NETWORKS.items()), "times"):
        shape = (max(1, shape[0] // 2), *shape[1:]) if quick else shape
        torch.manual_seed(0)
        x = torch.randn(shape)
        made = {way: network(name, way, x) for way in WAYS}
        timings = interleaved({way: partial(step, model, x) for way, model in made.items()}, rounds)
        rows.append(
            {
                "network": name,
                "images": list(shape),
                "threads": torch.get_num_threads(),
                "seconds": {way: timing.as_dict() for way, timing in timings.items()},
                "parameters": {way: sum(p.numel() for p in m.parameters()) for way, m in made.items()},
            }
        )
    return rows


def network(name: str, way: str, x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    classes = 1 if "unet" in name else 10
    model = build_model(name, x.shape[1], classes)
    init, _, pruned = way.partition(", ")
    base, _, density = init.partition("@")
    if base != "learned":
        efx.convert(model, base, seed=0, density=float(density or 1))
    if not pruned:
        return model
    target = torch.ones(len(x), 1, *x.shape[2:]) if "unet" in name else torch.zeros(len(x), dtype=torch.long)
    scores = efx.saliency(model, [(x[:4], target[:4])])
    report = efx.channelprune(
        model, x[:2], amount=0.9, criterion=scores, granularity="channel", weigh="work", bn_bias="drop"
    )
    assert report.model is not None
    return report.model


def step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward; the optimizer is left out: what it costs goes with the parameters."""
    model.train()
    torch.autograd.grad(model(x).square().mean(), [p for p in model.parameters() if p.requires_grad])
