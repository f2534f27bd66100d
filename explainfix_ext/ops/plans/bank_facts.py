"""Facts about a FilterBank, found once and kept in its cache: density, DCT functions, factors of a separable basis."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.basis import dct_basis

_T = TypeVar("_T")


def once(bank: FilterBank, name: Hashable, make: Callable[[], _T]) -> _T:
    """Returns make(), or what it returned for this bank and name before."""
    if name not in bank.cache:
        bank.cache[name] = make()
    return bank.cache[name]


def density_of(bank: FilterBank) -> float:
    """Returns the share of the filters that are not zero."""
    return once(bank, "density", lambda: bank.density)


def dct_numbers(bank: FilterBank) -> list[int] | None:
    """Returns each basis function's raster number u*K + v in the DCT-II, or None; found once."""
    return once(bank, "dct numbers", lambda: dct_functions(bank.basis))


def factors_of(bank: FilterBank) -> Tensor | None:
    """Returns the column and the row of each basis function, (L, kh + kw) float32, or None; found once."""
    return once(bank, "factors", lambda: product_factors(bank.basis))


def dct_functions(basis: Tensor) -> list[int] | None:
    """Finds for each function of `basis` (L, K, K) its raster number u*K + v in the DCT-II, whose functions kernels
    compute fast; None if one is not there."""
    if basis.shape[1] != basis.shape[2]:
        return None
    dct = dct_basis(basis.shape[1:]).flatten(1)
    distance = (basis.detach().cpu().double().flatten(1)[:, None] - dct).abs().amax(2).min(1)
    return distance.indices.tolist() if bool((distance.values < 1e-9).all()) else None


def product_factors(basis: Tensor) -> Tensor | None:
    """Factors each function of `basis` (L, kh, kw) float64 into a column and a row, (L, kh + kw) float32, whose outer
    product it is to 1e-9 of its norm; None if one is no such product."""
    left, size, right = torch.linalg.svd(basis.cpu())
    if bool((size[:, 1:] > 1e-9 * size[:, :1]).any()):
        return None
    root = size[:, :1].sqrt()
    return torch.cat([left[:, :, 0] * root, right[:, 0] * root], 1).float().to(basis.device)
