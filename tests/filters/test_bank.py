"""FilterBank: validation, compression of given filters, fingerprints."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import explainfix_ext as efx
from explainfix_ext import FilterBank
from explainfix_ext.filters.fingerprint import same_filters

B = efx.dct_basis((3, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_from_weight_keeps_filters_bit_for_bit(dtype: torch.dtype) -> None:
    w = torch.randn(6, 3, 4, 3).to(dtype)
    bank = FilterBank.from_weight(w)
    assert torch.equal(bank.weight(dtype), w)
    assert bank.coeff.dtype == dtype
    assert bank.recipe is None


def test_from_weight_is_the_best_approximation_of_its_rank() -> None:
    w = torch.randn(16, 8, 3, 3, dtype=torch.float64)
    sigma = torch.linalg.svdvals(w.flatten(2).flatten(0, 1))
    for rank in range(1, 10):
        error = (FilterBank.from_weight(w, rank=rank).weight(torch.float64) - w).norm()
        torch.testing.assert_close(error, sigma[rank:].norm(), atol=1e-6, rtol=1e-6)


def test_from_weight_keeps_the_energy_asked_for() -> None:
    w = torch.randn(16, 8, 5, 5, dtype=torch.float64) * torch.linspace(1, 0.01, 25).reshape(5, 5)
    for energy in (0.5, 0.9, 0.99):
        bank = FilterBank.from_weight(w, energy=energy)
        kept = (bank.weight(torch.float64).norm() / w.norm()) ** 2
        less = (FilterBank.from_weight(w, rank=bank.rank - 1).weight(torch.float64).norm() / w.norm()) ** 2
        assert less < energy <= kept + 1e-9


def test_energy_transfer_keeps_the_norm() -> None:
    w = torch.randn(16, 8, 3, 3, dtype=torch.float64)
    bank = FilterBank.from_weight(w, rank=4, energy_transfer=True)
    torch.testing.assert_close(bank.weight(torch.float64).norm(), w.norm())


def test_from_weight_of_zeros() -> None:
    bank = FilterBank.from_weight(torch.zeros(2, 2, 3, 3), energy=0.9, energy_transfer=True)
    assert (bank.weight() == 0).all()


def test_index_255_is_the_zero_filter() -> None:
    bank = FilterBank(efx.dct_basis((3, 3)), index=torch.tensor([[0, 255], [255, 8]], dtype=torch.uint8))
    w = bank.weight()
    assert (w[0, 1] == 0).all()
    assert (w[1, 0] == 0).all()
    assert bank.density == 0.5
    assert bank.nonzero.tolist() == [[True, False], [False, True]]


def test_weight_is_composed_wide_and_rounded_once() -> None:
    bank = efx.make_bank("ghaar4_s1", 8, 8, 3, seed=0)
    exact = torch.einsum("oil,lhw->oihw", bank.coeff.double(), bank.basis)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        torch.testing.assert_close(
            bank.weight(dtype), exact.to(dtype), rtol=0, atol=1e-15 if dtype.itemsize == 8 else 0
        )


def test_bank_is_immutable_and_shared_by_copies() -> None:
    bank = efx.make_bank("dct2", 4, 4, 3, seed=0)
    with pytest.raises(AttributeError):
        bank.scale = 2.0
    assert copy.deepcopy(bank) is bank
    assert torch.equal(pickle.loads(pickle.dumps(bank)).weight(), bank.weight())


def test_fingerprint_forgives_rounding_and_nothing_else() -> None:
    bank = efx.make_bank("psine", 8, 4, 3, seed=5, density=0.5, gain="kaiming")
    noise = 1e-7 * torch.randn(bank.coeff.shape)
    moved = FilterBank(bank.basis, coeff=bank.coeff + noise, scale=bank.scale)
    assert same_filters(bank.fingerprint(), moved.fingerprint())
    one = bank.coeff.clone()
    one[3, 2] += 0.1
    assert not same_filters(bank.fingerprint(), FilterBank(bank.basis, coeff=one, scale=bank.scale).fingerprint())
    index = FilterBank(B, index=torch.randint(0, 9, (5, 6), dtype=torch.uint8), scale=0.5)
    other = index.index.clone()
    other[0, 0] = (other[0, 0] + 1) % 9
    assert not same_filters(index.fingerprint(), FilterBank(index.basis, index=other, scale=0.5).fingerprint())


BAD = {
    "basis must be floating [L, kh, kw] with L >= 1, got float64 [9, 9]": lambda: FilterBank(B.flatten(1)),
    "exactly one of coeff, index and hadamard must be given": lambda: FilterBank(B),
    "coeff must be floating [O, I/groups, L = 9], got float32 [2, 3, 4]": lambda: FilterBank(B, torch.zeros(2, 3, 4)),
    "index must be uint8 [O, I/groups], got int64 [2, 3]": lambda: FilterBank(B, index=torch.zeros(2, 3).long()),
    "index must be below L = 9, or 255": lambda: FilterBank(B, index=torch.full((2, 3), 9, dtype=torch.uint8)),
    "at most 255 basis functions, got 289": lambda: FilterBank(
        efx.dct_basis((17, 17)), index=torch.zeros(1, 1, dtype=torch.uint8)
    ),
    "scale must be finite, got nan": lambda: FilterBank(B, torch.zeros(2, 3, 9), scale=float("nan")),
    "energy must be in (0, 1], got 0": lambda: FilterBank.from_weight(torch.zeros(2, 2, 3, 3), energy=0),
    "rank must be 1 to kh*kw = 9, and energy left out, got 10 and 1.0": lambda: FilterBank.from_weight(
        torch.zeros(2, 2, 3, 3), rank=10
    ),
    "w must be floating [O, I/groups, kh, kw], got int64 [2]": lambda: FilterBank.from_weight(torch.zeros(2).long()),
    "w must be finite": lambda: FilterBank.from_weight(torch.full((1, 1, 3, 3), float("nan"))),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_says_what_was_expected(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
