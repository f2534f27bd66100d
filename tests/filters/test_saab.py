"""saab_functions and its banks: real X-rays, plain definitions, near-equal axes, signs, scale."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.filters.registry import Layer
from explainfix_ext.filters.saab import joint_bank, saab_functions, spatial_bank


def covariance_of(patches: Tensor) -> Tensor:
    return torch.cov(patches.double().T, correction=0)


def random_covariance(size: int, seed: int = 0) -> Tensor:
    mix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return mix @ mix.T


def xray_patches(folder: Path, size: int) -> Tensor:
    """All patches of the first 300 training images, that lie within them."""
    images = torch.from_numpy(np.load(folder / "pneumoniamnist.npz")["train_images"][:300]).double() / 255
    return images.unfold(1, size, 1).unfold(2, size, 1).reshape(-1, size * size)


def test_energies_of_real_xrays(shared_data: Path) -> None:
    _, variances = saab_functions(covariance_of(xray_patches(shared_data, 3)))
    shares = (variances / variances.sum()).tolist()
    golden = [0.8716, 0.06606, 0.03798, 0.00794, 0.00705, 0.00551, 0.00191, 0.00149, 0.00046]
    assert shares == pytest.approx(golden, abs=5e-5)


@pytest.mark.parametrize(("size", "two", "five"), [(3, 0.9975, 0.9969), (5, 0.9906, 0.9889)])
def test_the_functions_of_real_xrays_are_nearly_the_dct(shared_data: Path, size: int, two: float, five: float) -> None:
    """Subspaces are compared, since axes that are about equally strong mix."""
    functions, _ = saab_functions(covariance_of(xray_patches(shared_data, size)))
    low = efx.dct_basis((size, size)).flatten(1)[efx.frequency_order((size, size))]
    overlap = [float((low[1 : n + 1] @ functions[1 : n + 1].T).square().sum()) / n for n in (2, 5)]
    assert overlap == pytest.approx([two, five], abs=5e-5)
    if size == 3:
        cosines = (functions[1:3] * low[1:3]).sum(1).abs()
        assert cosines.tolist() == pytest.approx([0.999, 0.998], abs=5e-4)


@pytest.mark.parametrize("size", [2, 9, 36])
def test_functions_are_the_constant_and_the_axes_of_what_is_left(size: int) -> None:
    patches = torch.randn(500, size, dtype=torch.float64) @ torch.randn(size, size, dtype=torch.float64)
    functions, variances = saab_functions(covariance_of(patches))
    eye = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(functions @ functions.T, eye, atol=1e-10, rtol=0)
    torch.testing.assert_close(functions[0], torch.full_like(functions[0], size**-0.5))
    left = patches - patches.mean(1, keepdim=True)
    _, sigma, axes = torch.linalg.svd(left - left.mean(0), full_matrices=False)
    torch.testing.assert_close((functions[1:] @ axes[:-1].T).abs(), eye[1:, 1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(variances[1:], sigma[:-1].square() / 500)
    torch.testing.assert_close(variances[0], (patches @ functions[0]).var(correction=0))
    assert bool((functions.gather(1, functions.abs().argmax(1, keepdim=True)) > 0).all())


def test_patches_that_vary_in_one_way_only_have_all_functions_all_the_same() -> None:
    """Their axes but one have the eigenvalue 0, as the constant function has."""
    direction = torch.tensor([1.0, -1, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64) / math.sqrt(2)
    functions, variances = saab_functions(1e-12 * torch.outer(direction, direction))
    torch.testing.assert_close(functions @ functions.T, torch.eye(9, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(functions[1].abs(), direction.abs())
    torch.testing.assert_close(variances, 1e-12 * torch.eye(9, dtype=torch.float64)[1], atol=1e-26, rtol=1e-9)


def test_spatial_filters_vary_as_the_patches_do() -> None:
    covariance = random_covariance(9)
    bank = spatial_bank(Layer(64, 64, (3, 3), seed=0), covariance, 1.0)
    filters = bank.weight(torch.float64).flatten(0, 1).flatten(1)
    functions, variances = saab_functions(covariance)
    within = torch.cov((filters @ functions.T).T, correction=0)
    expected = (2 / 64 * variances / variances.sum()).diag()
    assert (within - expected).norm() < 0.05 * expected.norm()
    assert filters.square().sum() / 64 == pytest.approx(2, rel=0.05)  # He's variance


def test_energy_leaves_the_weakest_functions_out() -> None:
    covariance = random_covariance(9)
    functions, variances = saab_functions(covariance)
    shares = variances.sort(descending=True).values.cumsum(0) / variances.sum()
    bank = spatial_bank(Layer(8, 4, (3, 3), seed=0), covariance, float(shares[2]) - 1e-6)
    strongest = functions[variances.argsort(descending=True)[:3]].reshape(3, 3, 3)
    assert torch.equal(bank.basis, strongest)
    assert spatial_bank(Layer(8, 4, (3, 3), seed=0), covariance, 1.0).rank == 9


def test_same_seed_same_filters() -> None:
    def weight(seed: int, make: str) -> Tensor:
        if make == "joint":
            return joint_bank(Layer(80, 4, (3, 3), seed), random_covariance(36)).weight()
        return spatial_bank(Layer(80, 4, (3, 3), seed), random_covariance(9), 1.0).weight()

    for make in ("joint", "spatial"):
        assert torch.equal(weight(1, make), weight(1, make))
        assert not torch.equal(weight(1, make), weight(2, make))


def test_joint_outputs_are_the_mean_then_pairs_then_mixes() -> None:
    covariance = random_covariance(18)
    functions, variances = saab_functions(covariance)
    weight = joint_bank(Layer(2000, 2, (3, 3), seed=0), covariance).weight(torch.float64).flatten(1)
    torch.testing.assert_close(weight[0], functions[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(weight[1:35:2], functions[1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(weight[2:35:2], -functions[1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(2000, dtype=torch.float64), atol=1e-6, rtol=0)
    shares = (weight[35:] @ functions.T).square().mean(0)
    assert bool((shares.argsort()[-5:] == variances.argsort()[-5:]).all())
    few = joint_bank(Layer(4, 2, (3, 3), seed=0), covariance).weight(torch.float64).flatten(1)
    torch.testing.assert_close(few, torch.stack([functions[0], functions[1], -functions[1], functions[2]]))
