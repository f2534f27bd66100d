"""Each initialisation against its rule; the same filters on every machine."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from support.inits import DRAWN

import explainfix_ext as efx
from explainfix_ext.filters.bank import ZERO_FILTER
from explainfix_ext.filters.initializers import psine_filters
from explainfix_ext.filters.make_bank import remake_bank
from explainfix_ext.filters.random_streams import Stream
from explainfix_ext.filters.registry import Layer

KERNELS = [3, 5, 7, 2, (1, 3), (5, 1), (4, 6)]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("init", DRAWN)
def test_shape_determinism_and_finiteness(init: str, kernel) -> None:
    bank = efx.make_bank(init, 6, 8, kernel, groups=2, seed=3)
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    weight = bank.weight()
    assert weight.shape == bank.shape == (6, 4, kh, kw)
    assert torch.isfinite(weight).all()
    assert torch.equal(weight, efx.make_bank(init, 6, 8, kernel, groups=2, seed=3).weight())
    if init not in ("ones", "identity"):
        assert not torch.equal(weight, efx.make_bank(init, 6, 8, kernel, groups=2, seed=4).weight())
    assert torch.equal(weight, remake_bank(bank.recipe, bank.shape, groups=2).weight())


# name -> (rank at 3x3, norm and first projection of the filters of (16, 8, 3, 3) at seed 1): the same on every machine.
PINNED: dict[str, tuple] = {
    "dct2": (9, 11.3137085, -17.9549114),
    "dct2_fill0": (9, 8.4852814, -0.8599053),
    "ghaar": (8, 25.7536431, -36.4464142),
    "ghaar2_ms": (9, 15.5189571, -0.4816465),
    "ghaar4_ms": (9, 22.5766947, 0.7245494),
    "ghaar4_s1": (4, 22.5766947, 47.8815487),
    "ghaar4_s2": (4, 22.5766947, 29.7624606),
    "ghaar9_s1": (9, 33.8710371, -22.6201263),
    "ghaar_r_ms": (9, 19.0479313, 7.3389387),
    "hadamard": (4, 5.6568542, -1.0000000),
    "haar": (3, 11.3137085, 4.8426138),
    "identity": (1, 11.3137085, 30.0000000),
    "kaiming_uniform": (9, 2.3248144, -4.9574040),
    "ones": (1, 33.9411255, -150.0000000),
    "psine": (9, 11.3137085, -4.8193037),
    "psine_r_ms": (9, 19.0479313, 7.3389387),
    "sdct4": (8, 11.3137085, 11.7979590),
}
PINNED_VERSION_1 = PINNED | {"dct2": (9, 11.3137085, 20.1503600)}  # checkpoints of before have such recipes


@pytest.mark.parametrize(("version", "pinned"), [(1, PINNED_VERSION_1), (2, PINNED)])
@pytest.mark.parametrize("init", DRAWN)
def test_filters_are_pinned(init: str, version: int, pinned: dict[str, tuple]) -> None:
    bank = efx.make_bank(init, 16, 8, 3, seed=1, version=version)
    mark = bank.fingerprint()
    rank, norm, projection = pinned[init]
    assert bank.rank == rank
    assert abs(mark["norm"] - norm) < 1e-5 * norm
    assert abs(mark["projections"][0] - projection) < 1e-5 * norm


def test_index_is_pinned_bit_for_bit() -> None:
    for version in (1, 2):  # alike where there are inputs enough for all functions
        index = efx.make_bank("dct2", 64, 64, 3, seed=1, density=0.1, version=version).index
        assert hashlib.sha256(index.numpy().tobytes()).hexdigest()[:16] == "9cd7c6581a5ee7ae"


def test_dct2_gives_every_output_all_functions_evenly() -> None:
    index = efx.make_bank("dct2", 12, 20, 3, seed=0).index
    counts = torch.stack([torch.bincount(row.long(), minlength=9) for row in index])
    assert counts.min() == 2
    assert counts.max() == 3
    depthwise = efx.make_bank("dct2", 20, 20, 3, groups=20, seed=0).index
    counts = torch.bincount(depthwise.flatten().long(), minlength=9)
    assert counts.tolist() == [3, 3] + [2] * 7


def test_dct2_draws_from_all_functions_for_few_inputs() -> None:
    """Version 1 drew the first I functions only, so that a stem of RGB images saw no vertical frequency."""
    index = efx.make_bank("dct2", 64, 3, 3, seed=0).index
    assert index.unique().tolist() == list(range(9))
    assert all(len(set(row.tolist())) == 3 for row in index)
    assert efx.make_bank("dct2", 64, 3, 3, seed=0, version=1).index.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(("inputs", "groups"), [(3, 1), (16, 1), (20, 1), (1, 24)])
def test_sdct4_equals_its_definition(kernel, inputs: int, groups: int) -> None:
    bank = efx.make_bank("sdct4", 24, inputs * groups, kernel, groups=groups, seed=7)
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    rows = sorted({min(u, kh - 1) * kw + min(v, kw - 1) for u in (0, 1) for v in (0, 1)})
    n, (o, i) = 2 * len(rows), (1, 24) if inputs == 1 else (24, inputs)
    drawn = Stream(7, "index").permutation(o, -(-i // n) * n)[:, :i].reshape(24, inputs) % n
    sign = torch.from_numpy(np.where(drawn < len(rows), 1.0, -1.0))
    functions = efx.dct_basis((kh, kw))[torch.tensor(rows)[torch.from_numpy(drawn) % len(rows)]]
    assert torch.equal(bank.weight(torch.float64), sign[..., None, None] * functions)


def test_sdct4_has_as_many_plus_as_minus() -> None:
    weight = efx.make_bank("sdct4", 12, 16, 3, seed=0).weight(torch.float64)
    assert weight.sum(1).abs().max() < 1e-12


def test_dct2_fill0_gives_each_function_to_one_output_of_every_input() -> None:
    index = efx.make_bank("dct2_fill0", 12, 5, 3, seed=0).index
    for column in index.T:
        assert sorted(column[column != ZERO_FILTER].tolist()) == list(range(9))
    few = efx.make_bank("dct2_fill0", 4, 5, 3, seed=0).index
    assert all(len(set(column.tolist())) == 4 for column in few.T)


def test_kernels_too_large_for_an_index_get_coefficients() -> None:
    for init in ("dct2", "dct2_fill0"):
        bank = efx.make_bank(init, 4, 3, 17, seed=0)
        assert bank.index is None
        assert ((bank.coeff != 0).sum(-1) <= 1).all()


@pytest.mark.parametrize(("init", "ranks"), [("ghaar", (8, 16, 24)), ("haar", (3, 3, 3)), ("ghaar4_s1", (4, 4, 4))])
def test_rank_is_what_the_kernels_can_use(init: str, ranks: tuple[int, ...]) -> None:
    assert tuple(efx.make_bank(init, 8, 8, k, seed=0).rank for k in (3, 5, 7)) == ranks


def test_ghaar_and_haar_equal_their_formula() -> None:
    """The basis that spans them loses nothing."""
    for k in (3, 5):
        layer = Layer(8, 4, (k, k), 0)
        h, v, d = (torch.from_numpy(w) for w in layer.stream("weights").uniform(3, 32, low=-1, high=1))
        f = torch.from_numpy(layer.stream("frequency").uniform(32, high=2 * (k - 1)))
        expected = efx.ghaar2d(k, h, v, d, f=f, norm=False).reshape(8, 4, k, k)
        torch.testing.assert_close(
            efx.make_bank("ghaar", 8, 4, k, seed=0).weight(torch.float64), expected, atol=1e-6, rtol=0
        )
        expected = efx.ghaar2d(k, h, v, d).reshape(8, 4, k, k)
        torch.testing.assert_close(
            efx.make_bank("haar", 8, 4, k, seed=0).weight(torch.float64), expected, atol=1e-6, rtol=0
        )
    assert efx.make_bank("haar", 8, 4, 3, seed=0, compat="paper").rank == 8


def test_ms_inits_mix_the_right_number_of_functions() -> None:
    for init, n in (("ghaar2_ms", 2), ("ghaar4_ms", 4)):
        assert ((efx.make_bank(init, 16, 8, 3, seed=0).coeff != 0).sum(-1) == n).all()
    for init in ("ghaar_r_ms", "psine_r_ms"):
        counts = {int(n) for s in range(8) for n in (efx.make_bank(init, 4, 4, 3, seed=s).coeff != 0).sum(-1).unique()}
        assert len(counts) > 1
        assert counts <= set(range(1, 10))


def test_psine_has_unit_norm() -> None:
    norms = efx.make_bank("psine", 64, 8, 5, seed=0).weight().flatten(2).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_psine_equals_polynomial_sine_term_by_term() -> None:
    def stream(purpose):
        return Stream(5, purpose)

    got = psine_filters(3, (3, 3), stream)
    terms = (3 + 2 ** (6 * stream("terms").uniform(3))).astype(int)
    fmax = stream("fmax").uniform(3, low=1, high=5)
    total = terms.sum()
    f, t = stream("frequency").uniform(2, total), stream("phase").uniform(2, total, high=2 * math.pi)
    powers, u = stream("power").uniform(total), stream("weight").uniform(total)
    start = 0
    for n, count in enumerate(terms):
        s = slice(start, start + count)
        start += count
        k = efx.polynomial_sine(
            3,
            torch.from_numpy(f[:, s].T * fmax[n]),
            torch.from_numpy(t[:, s].T.copy()),
            torch.from_numpy(np.rint(powers[s] * ((count - 1) / 2 - 1) + 1)),
            torch.from_numpy(2 * u[s] / u[s].sum() - 1),
        )
        k = 2 * (k - k.min()) / (k.max() - k.min()) - 1
        np.testing.assert_allclose(got[n], (k / k.norm()).flatten().numpy(), atol=1e-9)


def test_baselines() -> None:
    assert (efx.make_bank("ones", 4, 3, 3, seed=0).weight() == 1).all()
    identity = efx.make_bank("identity", 4, 3, 3, seed=0).weight()
    assert (identity[..., 1, 1] == 1).all()
    assert identity.sum() == 12
    kaiming = efx.make_bank("kaiming_uniform", 32, 16, 3, seed=0).weight()
    assert kaiming.abs().max() <= 1 / 12
    assert abs(kaiming.std() - 1 / 12 / 3**0.5) < 1e-3


def test_fill_zero_repairs_zeros_only() -> None:
    w = torch.randn(8, 4, 3, 3)
    w[0, 0] = 0
    w[1, 1, 0] = 0
    filled = efx.make_bank("fill_zero", 8, 4, 3, seed=0, weight=w).weight()
    assert torch.equal(filled[w != 0], w[w != 0])
    assert (filled != 0).all()
