"""Saliency measures what a network computes, not how its weights say it; norms of the weights do not."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compare import relative_error
from torch import nn

import explainfix_ext as efx
from explainfix_ext.prune.score.criteria import Context, score


@pytest.mark.parametrize("seed", range(5))
def test_saliency_symmetry(seed: int) -> None:
    """Hidden channels behind a ReLU may be scaled by D > 0 and exchanged by P: the network computes the same.

    The filters that write them become P D w, those that read them w D^-1 P^T; |w dc/dw| only moves along.
    """
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double()
    x, y = torch.randn(4, 3, 9, 9, generator=g).double(), torch.randint(0, 4, (4,), generator=g)
    scale, order = torch.exp(torch.randn(8, generator=g)).double(), torch.randperm(8, generator=g)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_((scale[:, None, None, None] * model[0].weight)[order])
        other[0].bias.copy_((scale * model[0].bias)[order])
        other[2].weight.copy_((model[2].weight / scale[:, None, None])[:, order])
    assert relative_error(other(x), model(x)) < 1e-12

    def scores(of: nn.Sequential, criterion: str) -> dict[str, torch.Tensor]:
        return score(criterion, Context(of, {"0": of[0], "2": of[2]}, None, [(x, y)]))

    for criterion in ("explainfix", "taylor"):
        before, after = scores(model, criterion), scores(other, criterion)
        assert relative_error(after["0"], before["0"][order]) < 1e-12
        assert relative_error(after["2"], before["2"][:, order]) < 1e-12
    assert relative_error(efx.saliency(other, [(x, y)])["0"], efx.saliency(model, [(x, y)])["0"][order]) < 1e-12
    for criterion in ("l1", "l2"):
        before, after = scores(model, criterion), scores(other, criterion)
        assert relative_error(after["0"], before["0"][order]) > 0.1
        assert relative_error(after["2"], before["2"][:, order]) > 0.1
