"""channelprune on 23 networks, each learned and converted: the pruned model equals the masked one, or says why not."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from support.bench_networks import PRUNE_MODELS, randomise_norms
from support.nets import check_same_state, state_of
from torch import Tensor, nn

import explainfix_ext as efx

pytest.importorskip("torchvision")

# Removing a channel changes the others of a LayerNorm: its stages stay whole, unless what goes is forgotten.
PROTECTED = {"convnext_tiny": "LayerNorm"}
FAST = ("resnet18", "mobilenet_v3_small", "unet_transposed")
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PRUNE_MODELS]
AMOUNTS = (0.5, 0.8, 0.9, 0.99)
WAYS: dict[str, dict[str, str]] = {
    "filters": {"granularity": "filter", "bn_bias": "keep", "scope": "layer"},
    "channels, dropped": {"granularity": "channel", "bn_bias": "drop"},
    "channels, folded": {"granularity": "channel", "bn_bias": "fold"},
}


def built(name: str, converted: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = PRUNE_MODELS[name]()
    if converted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            efx.convert(model, "dct2", seed=0)
    randomise_norms(model)
    size = 299 if name == "inception_v3" else 64  # its auxiliary head needs as much
    return model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("converted", [False, True], ids=["learned", "converted"])
@pytest.mark.parametrize("name", NAMES)
def test_pruned_equals_masked(name: str, converted: bool) -> None:
    model, x = built(name, converted)
    before = state_of(model)
    for way, options in WAYS.items():
        smallest = 1.0
        for amount in AMOUNTS:
            if name in PROTECTED and options["bn_bias"] == "fold":
                with pytest.raises(ValueError, match=f"nothing to prune.*{PROTECTED[name]}"):
                    efx.channelprune(model, x, amount=amount, criterion="l1", **options)
                continue
            report = efx.channelprune(model, x, amount=amount, criterion="l1", **options)
            if report.plan["layers"]:
                assert report.verify_error is not None
                assert report.verify_error < 1e-5
                smallest = min(smallest, report.parameters[1] / report.parameters[0])
            else:
                assert report.verify_error is None
            assert report.pruned_filters >= amount - 0.05 or options["granularity"] == "channel"
            fresh = efx.apply_plan(copy.deepcopy(model), report.plan)
            assert report.model is not None
            fresh.load_state_dict(report.model.state_dict())
        report.model.train()(x)  # heads that run in training only are cut, too
        # Not only verified: something went, too. (A constant before a gate, as in EfficientNet, cannot be folded.)
        if way == "channels, dropped":
            assert smallest < 0.999, smallest
    check_same_state(model, before)
    assert model.training
