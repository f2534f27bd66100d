"""make_bank: what its options do to every initialisation, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from support.inits import DRAWN

import explainfix_ext as efx
from explainfix_ext.filters.fingerprint import same_filters
from explainfix_ext.filters.make_bank import remake_bank


@pytest.mark.parametrize("init", [init for init in DRAWN if init != "hadamard"])  # test_hadamard.py has its density
def test_density_is_exact_and_nested(init: str) -> None:
    banks = [efx.make_bank(init, 40, 25, 3, seed=0, density=p) for p in (0.5, 0.1, 0.001)]
    kept = [bank.nonzero for bank in banks]
    if init != "dct2_fill0":
        assert [int(k.sum()) for k in kept] == [500, 100, 1]
    assert (kept[1] <= kept[0]).all()
    assert (kept[2] <= kept[1]).all()
    full = efx.make_bank(init, 40, 25, 3, seed=0).weight()
    assert torch.equal(banks[0].weight()[kept[0]], full[kept[0]])


@pytest.mark.parametrize("density", [1.0, 0.125])
@pytest.mark.parametrize("init", DRAWN)
def test_kaiming_gain_keeps_the_variance(init: str, density: float) -> None:
    weight = efx.make_bank(init, 64, 32, 3, seed=0, gain="kaiming", density=density).weight(torch.float64)
    assert abs((weight**2).sum().item() / 64 - 2) < 1e-6


@pytest.mark.parametrize("init", DRAWN)
def test_shared_basis_lowers_the_rank(init: str) -> None:
    bank = efx.make_bank(init, 16, 8, 5, seed=0, shared_basis=3)
    assert bank.rank == 3
    assert torch.equal(bank.weight(), remake_bank(bank.recipe, bank.shape).weight())
    assert torch.linalg.matrix_rank(bank.weight(torch.float64).flatten(2).flatten(0, 1), atol=1e-5) <= 3


def test_default_device_and_dtype_do_not_matter() -> None:
    expected = efx.make_bank("psine", 4, 4, 3, seed=0).weight(torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            bank = efx.make_bank("psine", 4, 4, 3, seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(bank.weight(torch.float32), expected)


def test_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    efx.make_bank("psine", 4, 4, 3, seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_recipes_of_other_seeds_differ_by_fingerprint() -> None:
    a, b = (efx.make_bank("ghaar", 8, 8, 3, seed=s) for s in (0, 1))
    assert not same_filters(a.fingerprint(), b.fingerprint())


BAD = {
    "unknown init 'ghaar4'; nearest: ghaar": {"init": "ghaar4"},
    "density must be in (0, 1], got 0": {"density": 0},
    'gain must be "paper" or "kaiming", got \'he\'': {"gain": "he"},
    "groups must divide out_channels and in_channels, got 3 for 8 and 4": {"groups": 3},
    "seed must be an integer in [0, 2**63), got -1": {"seed": -1},
    "kernel_size must be one or two positive integers, got (3, 3, 3)": {"kernel_size": (3, 3, 3)},
    "init 'dct2' takes no option 'energy'; it takes density, gain, shared_basis": {"energy": 0.9},
    "shared_basis must be 1 to kh*kw = 9": {"shared_basis": 10},
    "init 'unchanged' starts from given filters: weight must be a tensor, got None": {"init": "unchanged"},
    "weight must be [O, I/groups, kh, kw] = [8, 4, 3, 3], got [1, 4, 3, 3]": {
        "init": "unchanged",
        "weight": torch.zeros(1, 4, 3, 3),
    },
    "shared_basis must be 1 to kh*kw = 9, got 2.0": {"shared_basis": 2.0},
    "density must be in (0, 1], got 1": {"density": "1"},
    "weight must be a tensor, got list": {"init": "unchanged", "weight": [1]},
    "weight must hold numbers for density and gain": {
        "init": "unchanged",
        "weight": torch.zeros(8, 4, 3, 3, device="meta"),
        "density": 0.5,
    },
    "weight must be floating, got torch.complex64": {
        "init": "fill_zero",
        "weight": torch.zeros(8, 4, 3, 3, dtype=torch.complex64),
    },
    "init 'fill_zero' must make finite filters, got NaN or infinity": {
        "init": "fill_zero",
        "weight": torch.full((8, 4, 3, 3), math.inf),
    },
    "rank must be 1 to kh*kw = 9": {"init": "unchanged", "weight": torch.zeros(8, 4, 3, 3), "rank": True},
    "energy must be in (0, 1], got x": {"init": "unchanged", "weight": torch.zeros(8, 4, 3, 3), "energy": "x"},
    "shared_basis must be 1 to kh*kw = 9, got True": {"shared_basis": True},
    "version must be 1 to 2, got 3": {"version": 3},
    "version must be 1 to 2, got True": {"version": True},
    "compat must be None or \"paper\", got 'no'": {"init": "haar", "compat": "no"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_says_what_was_expected(message: str) -> None:
    arguments = {"init": "dct2", "out_channels": 8, "in_channels": 4, "kernel_size": 3, "seed": 0} | BAD[message]
    with pytest.raises(ValueError) as error:
        efx.make_bank(**arguments)
    assert message in str(error.value)
