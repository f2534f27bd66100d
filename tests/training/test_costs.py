"""What a network costs: the bytes that a training step keeps."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')

from support.dropout_run import assert_same

from explainfix_ext import FixedConv2d, convert
from explainfix_ext.training import costs, models


def test_bytes_kept_counts_activations_once_and_no_filters():
    x = torch.randn(2, 4, 8, 8)
    conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    forward = lambda model: model(x).sum()  # noqa: E731
    assert costs.bytes_kept(conv, forward) == 2 * x.nbytes  # x, and the ReLU's output, which the second conv shares
    convert(conv, "dct2", pointwise=False)
    assert costs.bytes_kept(conv, forward) == x.nbytes  # the ReLU's output
    alone = nn.Sequential(FixedConv2d(4, 4, 3, padding=1, init="ghaar", seed=0))
    assert costs.bytes_kept(alone, forward) == 0


def test_bytes_kept_lets_go_of_what_it_counted():
    """A sigmoid keeps its own output: given back as it is, it would hold its graph, and that would hold it."""
    seen = []

    def loss(model):
        output = torch.sigmoid(model(torch.randn(2, 3)))
        seen.append(weakref.ref(output.untyped_storage()))
        return output.sum()

    costs.bytes_kept(torch.nn.Linear(3, 3), loss)
    gc.collect()
    assert seen[0]() is None


def test_bytes_kept_leaves_the_model_alone():
    model = models.build_model("bottleneck", 1, 3).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    costs.bytes_kept(model, lambda m: m(torch.randn(2, 1, 28, 28)).sum())
    assert not model.training
    assert_same(before, dict(model.state_dict()))
