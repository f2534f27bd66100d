"""Fixtures of the tests of training: two tiny models among the presets, and a configuration that trains in a second."""

from __future__ import annotations

import pytest
from support.dropout_run import DropoutNet, stripes
from torch import nn

from explainfix_ext.training import models
from explainfix_ext.training.config import TrainConfig


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch):
    monkeypatch.setitem(models.PRESETS, "tiny", DropoutNet)
    monkeypatch.setitem(
        models.PRESETS,
        "tiny_mask",
        lambda c, k, width: nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.Conv2d(4, k, 1)),
    )


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    return TrainConfig(model="tiny", data=stripes(tmp_path / "stripes.npz"), epochs=4, batch_size=16, lr=0.01)
