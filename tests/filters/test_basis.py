"""Bases and filters against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch

import explainfix_ext as efx
from explainfix_ext.filters.basis import span

ONE = torch.ones(1, 1)


@pytest.mark.parametrize("shape", [(3, 3), (5, 5), (1, 7), (2, 4), (4,), (2, 3, 4)])
@pytest.mark.parametrize("kind", ["dct2", "dct4"])
def test_dct_basis_is_orthonormal(shape: tuple[int, ...], kind: str) -> None:
    basis = efx.dct_basis(shape, kind)
    assert basis.shape == (math.prod(shape), *shape)
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat), dtype=torch.float64), atol=1e-14, rtol=0)


def test_dct_basis_equals_the_formula() -> None:
    kh, kw = 3, 5
    basis = efx.dct_basis((kh, kw))
    for u in range(kh):
        for v in range(kw):
            for m in range(kh):
                for n in range(kw):
                    su, sv = math.sqrt((1 if u == 0 else 2) / kh), math.sqrt((1 if v == 0 else 2) / kw)
                    expected = su * sv * math.cos(math.pi / kh * (m + 0.5) * u) * math.cos(math.pi / kw * (n + 0.5) * v)
                    assert abs(basis[u * kw + v, m, n].item() - expected) < 1e-14


def test_dct_basis_flipped_changes_only_sign() -> None:
    """What the input gradient of the index kernels rests on."""
    basis = efx.dct_basis((4, 5))
    signs = torch.tensor([(-1.0) ** (u + v) for u in range(4) for v in range(5)], dtype=torch.float64)
    torch.testing.assert_close(basis.flip(1, 2), signs[:, None, None] * basis)


@pytest.mark.parametrize("size", [3, 5, (1, 7), (4, 2)])
def test_ghaar2d_equals_the_formula(size) -> None:
    kh, kw = (size, size) if isinstance(size, int) else size
    h, v, d, a, f = 0.3, -0.7, 0.4, 0.2, 1.3

    def c(n, k):
        return math.cos(f * math.pi * n / max(k - 1, 1))

    got = efx.ghaar2d(size, h, v, d, a, f, norm=False)
    for m in range(kh):
        for n in range(kw):
            expected = a + h * c(m, kh) + v * c(n, kw) + d * c(m, kh) * c(n, kw)
            assert abs(got[m, n].item() - expected) < 1e-14
    normed = efx.ghaar2d(size, h, v, d, a, f)
    torch.testing.assert_close(normed, got / got.norm())


def test_ghaar2d_is_differentiable_and_batched() -> None:
    h, v, d, a = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(4))
    assert torch.autograd.gradcheck(lambda h, v, d, a: efx.ghaar2d(3, h, v, d, a), (h, v, d, a))
    one = efx.ghaar2d(3, h[1], v[1], d[1], a[1])
    torch.testing.assert_close(efx.ghaar2d(3, h, v, d, a)[1], one)


def test_polynomial_sine_equals_the_formula() -> None:
    f, t = torch.rand(4, 2, dtype=torch.float64) * 5, torch.rand(4, 2, dtype=torch.float64)
    p, w = torch.tensor([1.0, 2, 3, 5]), torch.randn(4, dtype=torch.float64)
    x = torch.linspace(0, math.pi, 3, dtype=torch.float64)
    expected = sum(
        w[i] * torch.outer(torch.sin(x * f[i, 0] + t[i, 0]), torch.sin(x * f[i, 1] + t[i, 1])) ** p[i] for i in range(4)
    )
    torch.testing.assert_close(efx.polynomial_sine(3, f, t, p, w), expected)
    cube = efx.polynomial_sine(3, f[:, :1].expand(-1, 3), t[:, :1].expand(-1, 3), p, w)
    assert cube.shape == (3, 3, 3)


def test_polynomial_sine_rounds_its_powers() -> None:
    generator = torch.Generator().manual_seed(0)
    f, t = torch.rand(2, 4, 2, generator=generator, dtype=torch.float64) * 5
    w, whole = torch.randn(4, generator=generator), torch.tensor([0.0, 1, 2, 3])
    expected = efx.polynomial_sine(5, f, t, whole, w)
    assert torch.equal(efx.polynomial_sine(5, f, t, whole + torch.tensor([0.5, 0.4, -0.3, -0.4]), w), expected)
    assert torch.equal(efx.polynomial_sine(5, f, t, whole.int(), w), expected)


def test_steer() -> None:
    basis, weights = efx.dct_basis((3, 3)), torch.randn(5, 9, dtype=torch.float64)
    flat = basis.flatten(1)  # orthonormal, so a projection brings the weights back
    torch.testing.assert_close(efx.steer(basis, weights).flatten(1) @ flat.T, weights)
    torch.testing.assert_close(efx.steer(basis, weights, power=2).flatten(1) @ flat.T, weights * weights)
    torch.testing.assert_close(efx.steer(basis, weights[0], power=0), basis.sum(0))
    with pytest.raises(ValueError, match=r"weights must be \[..., L\] = \[..., 9\], got \[4\]"):
        efx.steer(basis, torch.zeros(4))


def test_frequency_order_sorts_by_frequency() -> None:
    order = efx.frequency_order((2, 8)).tolist()
    assert sorted(order) == list(range(16))
    sums = [i // 8 + i % 8 for i in order]
    assert sums == sorted(sums)
    assert efx.frequency_order((3, 3)).tolist() == [0, 1, 3, 2, 6, 4, 5, 7, 8]


def test_span_has_the_rank_of_its_filters() -> None:
    filters = torch.randn(4, 3, 3, dtype=torch.float64)
    basis = span(torch.cat([filters, filters[:2] + filters[2:]]))
    assert basis.shape == (4, 3, 3)
    back = torch.einsum("nhw,lhw->nl", filters, basis)
    torch.testing.assert_close(efx.steer(basis, back), filters)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: efx.dct_basis((3, 0)), "shape must be positive integers, got (3, 0)"),
        (lambda: efx.dct_basis((3, 3), "dst"), 'kind must be "dct2" or "dct4", got \'dst\''),
        (lambda: efx.polynomial_sine(3, ONE, ONE, -ONE[0], ONE[0]), "p must be finite powers, 0 or more, got -1"),
        (
            lambda: efx.polynomial_sine(3, ONE, ONE, ONE[0] * math.nan, ONE[0]),
            "p must be finite powers, 0 or more, got nan",
        ),
        (
            lambda: efx.polynomial_sine(3, ONE, ONE, ONE[0], 1j * ONE[0]),
            "w must be real and finite, got torch.complex64",
        ),
        (lambda: efx.polynomial_sine(0, ONE, ONE, ONE[0], ONE[0]), "size must be one or two positive integers"),
        (lambda: efx.ghaar2d(3, math.inf, 1.0, 1.0), "h must be real and finite, got inf"),
        (lambda: efx.ghaar2d((3, 0), 1.0, 1.0, 1.0), "size must be one or two positive integers, got (3, 0)"),
        (lambda: efx.dct_basis((3, 3), dtype=torch.int32), "dtype must be floating, got torch.int32"),
        (lambda: efx.steer(efx.dct_basis((1, 1)), -ONE, power=0.5), "power must leave the weights finite"),
        (lambda: efx.steer(efx.dct_basis((1, 1)), 0 * ONE, power=-1), "power must leave the weights finite"),
        (lambda: efx.steer(efx.dct_basis((1, 1)), ONE, power=1j), "power must leave the weights finite"),
        (lambda: efx.polynomial_sine(3, *[torch.zeros(2)] * 4), "f and t must both be [L, N], got [2] and [2]"),
        (
            lambda: efx.polynomial_sine(3, torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(3), torch.zeros(2)),
            "p and w must be [L] = [2], got [3] and [2]",
        ),
    ],
)
def test_bad_input_says_what_was_expected(call, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
