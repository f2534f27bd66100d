"""fit_steering: the DCT's own functions, axes chosen by number, several models."""

from __future__ import annotations

import pytest
import torch
from support.correlated import flat, network
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.ops.plans.bank_facts import dct_numbers


def drawn(steering: efx.Steering, name: str = "0") -> Tensor:
    """40,000 filters like those of a layer, (n, K^2)."""
    mixture = steering.layers[name]
    bank = efx.make_bank(f"{steering.method}_steer", 200, 200, mixture.kernel_size, seed=1, steering=mixture)
    return flat(bank.weight(torch.float64))


# method "dct" ---------------------------------------------------------------------------------------------------------


def test_dct_draws_have_mean_and_deviation_of_each_coefficient() -> None:
    model = network((4, 60, 3), (60, 8, 5))
    steering = efx.fit_steering(model, "dct", coefficients="normal")
    for name, k in (("0", 3), ("2", 5)):
        functions = efx.dct_basis((k, k)).flatten(1)
        given, found = flat(model[int(name)].weight) @ functions.T, drawn(steering, name) @ functions.T
        size = given.square().mean().sqrt()
        assert (found.mean(0) - given.mean(0)).abs().max() < 0.05 * size
        assert (found.std(0) - given.std(0)).abs().max() < 0.05 * size


def test_dct_filters_keep_the_fast_kernels() -> None:
    steering = efx.fit_steering(network((4, 60, 3)), "dct", energy=0.8)
    rank = len(steering.layers["0"].basis)
    assert rank < 9
    model = network((16, 32, 3))
    report = efx.convert(model, "dct_steer", steering=steering)
    assert report.converted[0].init == "dct_steer"
    numbers = dct_numbers(model[0].bank)
    assert numbers is not None
    assert len(set(numbers)) == rank
    assert dct_numbers(efx.make_bank("guided_steer", 4, 4, 3, seed=0, steering=_guided())) is None


def _guided() -> object:
    return efx.fit_steering(network((4, 60, 3))).layers["0"]


def test_dct_keeps_the_functions_that_have_most_of_the_energy() -> None:
    model = network((4, 60, 3))
    functions = efx.dct_basis((3, 3))
    energies = (flat(model[0].weight) @ functions.flatten(1).T).square().sum(0)
    order = energies.argsort(descending=True)
    basis = efx.fit_steering(model, "dct", energy=float(energies[order[:3]].sum() / energies.sum())).layers["0"].basis
    assert torch.equal(basis, functions[order[:3]])


def test_dct_file(tmp_path) -> None:
    pytest.importorskip("safetensors")
    steering = efx.fit_steering(network((4, 8, 3)), "dct")
    steering.save(tmp_path / "s.safetensors")
    loaded = efx.Steering.load(tmp_path / "s.safetensors")
    assert loaded.method == "dct"
    assert torch.equal(drawn(loaded), drawn(steering))


# components -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["guided", "svd", "dct"])
@pytest.mark.parametrize(
    ("components", "kept"),
    [
        (slice(None, -1), range(8)),  # the authors' U1
        (slice(None, -3), range(6)),  # U3
        (slice(1, None), range(1, 9)),  # V1
        ([2, 0, -1], [2, 0, 8]),
        (range(3), range(3)),
    ],
)
def test_components_are_axes_by_number_from_the_strongest(method: str, components: object, kept: range) -> None:
    model = network((4, 30, 3))
    every = efx.fit_steering(model, method).layers["0"].basis
    some = efx.fit_steering(model, method, components=components)
    assert torch.equal(some.layers["0"].basis, every[[*kept]])
    others = every[[n for n in range(9) if n not in kept]].flatten(1)
    assert (drawn(some) @ others.T).abs().max() < 1e-5


def test_energy_and_components_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="energy must be left out where components are given, got 0.5"):
        efx.fit_steering(network((3, 8, 3)), energy=0.5, components=[0])


@pytest.mark.parametrize("components", [[9], [0, 0], [0, -9], [], slice(9, None), 3, ["0"]])
def test_bad_components_are_told(components: object) -> None:
    with pytest.raises(ValueError, match="components must be a slice or different numbers of 9 functions, got"):
        efx.fit_steering(network((3, 8, 3)), components=components)


# several models -------------------------------------------------------------------------------------------------------


def test_layers_of_one_name_are_fitted_as_one() -> None:
    one, other = network((3, 20, 3), (20, 8, 5)), network((3, 20, 3), (20, 6, 3))
    steering = efx.fit_steering([one, other], coefficients="normal")
    assert list(steering.layers) == ["0", "2", "2, 3x3"]
    assert steering.layers["2"].kernel_size == (5, 5)
    both = torch.cat([flat(one[0].weight), flat(other[0].weight)])
    mixture = steering.layers["0"]
    assert mixture.filters == (1, len(both))
    axes = torch.linalg.svd(both, full_matrices=False).Vh
    overlap = (mixture.basis.flatten(1) @ axes.T).abs()
    torch.testing.assert_close(overlap, torch.eye(9, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(drawn(steering).mean(0), both.mean(0), atol=0.1, rtol=0.1)


def test_one_model_in_a_list_is_that_model() -> None:
    model = network((3, 8, 3), (8, 8, 5), (8, 8, 3), depthwise=(2,))
    alone, listed = efx.fit_steering(model, "svd"), efx.fit_steering([model], "svd")
    assert list(alone.layers) == list(listed.layers)
    assert all(torch.equal(drawn(alone, name), drawn(listed, name)) for name in alone.layers)
    fresh = network((3, 8, 3), (8, 8, 5), (8, 8, 3), depthwise=(2,))
    assert alone.match(fresh) == listed.match(fresh)


def test_layers_of_several_models_are_in_the_order_of_their_depth() -> None:
    shallow, deep = network((3, 8, 3), (8, 8, 3)), network(*[(8, 8, 3)] * 5)
    steering = efx.fit_steering([shallow, deep], "svd")
    # "2" is last in one and second in the other: (1 + 1/4) / 2 = 5/8, after "4" at 2/4.
    assert list(steering.layers) == ["0", "4", "2", "6", "8"]
    report = efx.convert(deep, "svd_steer", steering=steering)
    assert [layer.init for layer in report.converted] == ["svd_steer"] * 5


@pytest.mark.parametrize("models", [[], "resnet18", [network((3, 8, 3)), None]])
def test_what_is_no_list_of_models_is_told(models: object) -> None:
    with pytest.raises(TypeError, match="model must be an nn.Module"):
        efx.fit_steering(models)
