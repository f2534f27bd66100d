"""Filters that are zero and stay are filled."""

from __future__ import annotations

import pytest
import torch
from support.nets import Residual, images, made
from torch import nn

import explainfix_ext as efx


@pytest.mark.parametrize("kind", ["learned", "dct2", "low rank", "hadamard"])
@pytest.mark.parametrize("fill", ["reset", "fill_zero"])
def test_fill_leaves_no_zero_filter(fill: str, kind: str) -> None:
    model = made(Residual, kind)
    report = efx.channelprune(model, images(), amount=0.6, criterion="random", fill=fill)
    assert report.plan["zeros"]
    layers = [m for m in report.model.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[union-attr]
    assert all(bool(layer.weight.flatten(2).any(2).all()) for layer in layers)
    again = efx.channelprune(model, images(), amount=0.6, criterion="random", fill=fill)
    assert torch.equal(report.model(images()), again.model(images()))  # type: ignore[misc,union-attr]
