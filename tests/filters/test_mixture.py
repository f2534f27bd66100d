"""FilterMixture: what is drawn has the moments of the filters that it was fitted to."""

from __future__ import annotations

import math

import pytest
import torch
from support.correlated import correlated, flat, network
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.filters.mixture import FilterMixture


def moments(filters: Tensor) -> tuple[Tensor, Tensor]:
    return filters.mean(0), torch.cov(filters.T, correction=0)


def drawn(mixture: FilterMixture, init: str = "guided_steer") -> Tensor:
    """40,000 filters, (n, K^2)."""
    return flat(efx.make_bank(init, 200, 200, mixture.kernel_size, seed=1, steering=mixture).weight(torch.float64))


def assert_moments(found: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """To five standard errors, in the norm of all entries."""
    got_mean, got = moments(found)
    assert (got_mean - mean).norm() < 5 * (covariance.trace() / len(found)).sqrt()
    assert (got - covariance).norm() < 5 * covariance.trace() / math.sqrt(len(found))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("method", ["guided", "svd", "dct"])
def test_kde_draws_have_the_moments_of_the_filters_and_the_kernel(method: str, centred: bool) -> None:
    model = network((2, 15, 3), (15, 8, 3))
    steering = efx.fit_steering(model, method, centred=centred)
    filters = flat(model[0].weight)
    factor = len(filters) ** (-1 / (9 + 4))  # Scott
    mean, covariance = moments(filters)
    with_kernel = covariance * (1 + factor**2 * len(filters) / (len(filters) - 1))
    assert_moments(drawn(steering.layers["0"], f"{method}_steer"), mean, with_kernel)


def test_kde_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    model = network((3, 20, 3))
    mixture = efx.fit_steering(model).layers["0"]
    kde = stats.gaussian_kde((flat(model[0].weight) @ mixture.basis.flatten(1).T).T.numpy())
    torch.testing.assert_close(mixture.spread @ mixture.spread, torch.from_numpy(kde.covariance), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(mixture.centres.double().T, torch.from_numpy(kde.dataset), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("centred", [False, True])
def test_normal_draws_have_the_mean_and_the_variances_of_the_coefficients(centred: bool) -> None:
    model = network((4, 30, 3))
    mixture = efx.fit_steering(model, coefficients="normal", centred=centred).layers["0"]
    assert len(mixture.centres) == 1
    basis = mixture.basis.flatten(1)
    coefficients = flat(model[0].weight) @ basis.T
    found = drawn(mixture) @ basis.T
    assert_moments(found, coefficients.mean(0), coefficients.var(0).diag())


def test_few_axes_make_filters_of_low_rank_that_keep_the_energy() -> None:
    model = network((4, 30, 3))
    filters = flat(model[0].weight)
    for energy in (0.5, 0.8, 0.95):
        mixture = efx.fit_steering(model, energy=energy).layers["0"]
        basis = mixture.basis.flatten(1)
        kept = (filters @ basis.T).square().sum() / filters.square().sum()
        fewer = (filters @ basis[:-1].T).square().sum() / filters.square().sum()
        assert fewer < energy <= kept
        assert mixture.energy == pytest.approx(float(kept))
        assert mixture.basis.shape[0] < 9
        bank = efx.make_bank("guided_steer", 16, 16, 3, seed=0, steering=mixture)
        assert bank.rank == len(basis)
        assert torch.linalg.matrix_rank(flat(bank.weight(torch.float64)), rtol=1e-5) == len(basis)


def test_centred_filters_all_have_the_mean_and_vary_on_few_axes() -> None:
    model = network((4, 50, 3))
    filters = flat(model[0].weight)
    mixture = efx.fit_steering(model, centred=True, energy=0.7).layers["0"]
    basis = mixture.basis.flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64))
    assert (mixture.centres[:, -1] == mixture.centres[0, -1]).all()
    assert mixture.spread[-1].norm() < 1e-6 * mixture.spread.norm()
    assert_moments(drawn(mixture), filters.mean(0), moments(drawn(mixture))[1])
    assert torch.linalg.matrix_rank(drawn(mixture) - filters.mean(0), rtol=1e-4) >= len(basis) - 1


@pytest.mark.parametrize("coefficients", ["kde", "normal"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    "weight",
    [torch.zeros(4, 3, 3, 3), torch.randn(1, 1, 3, 3), torch.ones(4, 2, 3, 3), correlated(5, 5, rank=2)],
    ids=["zero", "one filter", "all alike", "two dimensions"],
)
def test_singular_covariances_are_no_obstacle(weight: Tensor, centred: bool, coefficients: str) -> None:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3)
    conv.weight.data = weight
    mixture = efx.fit_steering(conv, centred=centred, coefficients=coefficients).layers[""]
    found = drawn(mixture)
    assert torch.isfinite(found).all()
    assert found.norm(dim=1).max() <= 20 * weight.norm()
    assert mixture.energy == pytest.approx(1)
    _, sigma, axes = torch.linalg.svd(flat(weight), full_matrices=False)
    span = axes[sigma > 1e-4 * sigma[0]]
    assert (found - found @ span.T @ span).norm() <= 1e-4 * found.norm()
