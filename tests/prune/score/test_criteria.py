"""The criteria of pruning, against plain definitions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.explained import Geometry, batches, convolutions, make, weight_gradients
from support.nets import Net, Residual
from torch import nn

import explainfix_ext as efx
from explainfix_ext.prune.score.criteria import CRITERIA, Context, score
from explainfix_ext.prune.trace.fx_trace import ChannelTrace

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")


def context(model: nn.Module, data: Any = None) -> Context:
    layers = convolutions(model)
    x = torch.zeros(1, 3, 12, 12).double()
    trace = ChannelTrace(model.eval(), (x,))
    with torch.no_grad():
        trace.run(x)
    return Context(model, layers, trace.channels, data, None, None, 0)


@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_criteria_of_weights_and_gradients(kind: str) -> None:
    model, data = make(kind, Geometry).eval(), batches(1, 1, 1)
    for name, gradients in weight_gradients(model, data).items():
        weight = convolutions(model)[name].weight.detach()
        assert relative_error(score("l1", context(model))[name], weight.abs().sum((-2, -1))) < 1e-12
        assert relative_error(score("l2", context(model))[name], weight.square().sum((-2, -1)).sqrt()) < 1e-12
        taylor = torch.stack([(weight * g).sum((-2, -1)).square() for g in gradients]).mean(0)
        assert relative_error(score("taylor", context(model, data))[name], taylor) < 1e-10


def test_bn_scale_is_the_norms_weight() -> None:
    model = make("learned", Net)
    nn.init.normal_(model.bn.weight)
    with pytest.raises(ValueError, match='"bn_scale" needs a BatchNorm behind every spatial layer: tail has none'):
        score("bn_scale", context(model))
    model.tail = nn.Sequential(model.tail, nn.BatchNorm2d(8)).double()
    scores = score("bn_scale", context(model))
    assert torch.equal(scores["stem"], model.bn.weight.detach().abs()[:, None].expand(16, 3))
    assert torch.equal(scores["tail.0"], torch.ones(8, 16).double())


def test_hrank_is_the_mean_rank_of_feature_maps() -> None:
    model, data = make("learned", Net), batches(2, 1)
    with torch.no_grad():
        model.stem.weight[3] = 0
        model.stem.bias[3] = 1  # constant maps: rank 1
    scores = score("hrank", context(model, data))["stem"]
    ranks = [torch.linalg.matrix_rank(model.stem(x)).double().sum(0) for x, _ in data]
    assert torch.equal(scores, (sum(ranks) / 3)[:, None].expand(16, 3))
    assert scores[3, 0] == 1


def test_nisp_spreads_importance_back() -> None:
    """Net, by hand: head -> mean -> tail -> stem."""
    model = make("learned", Net)
    importance = model.head.weight.detach().abs().sum(0)
    tail = model.tail.weight.detach().abs().sum((-2, -1))
    scores = score("nisp", context(model))
    share = tail * importance[:, None]
    assert relative_error(scores["tail"], share / share.mean()) < 1e-12
    stem = model.stem.weight.detach().abs().sum((-2, -1)) * (tail.T @ importance)[:, None]
    assert relative_error(scores["stem"], stem / stem.mean()) < 1e-12


def test_every_criterion_prunes_and_random_is_seeded() -> None:
    model, data = make("learned", Residual), batches(2)
    for name in CRITERIA:
        if name == "bn_scale":
            continue
        report = efx.channelprune(model, data[0][0], amount=0.5, criterion=name, data=data, structured=name == "nisp")
        assert report.criterion == name
        assert 0.49 < report.pruned_filters < 0.6
    plans = [
        efx.channelprune(model, data[0][0], amount=0.5, criterion="random", structured=False, seed=seed).plan
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]
