"""What is found out about a bank once, and kept with it: a FilterBank is immutable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.basis import dct_basis

_T = TypeVar("_T")


def once(bank: FilterBank, name: str, make: Callable[[], _T]) -> _T:
    """make(), or what it returned for this bank before."""
    if name not in bank.__dict__:
        bank.__dict__[name] = make()
    return bank.__dict__[name]


def density_of(bank: FilterBank) -> float:
    """Share of the filters that are not zero."""
    return once(bank, "_density", lambda: bank.density)


def dct_numbers(bank: FilterBank) -> list[int] | None:
    """`dct_functions` of the bank's basis: None if a function is none of the DCT-II's, which kernels compute fast."""
    return once(bank, "_dct", lambda: dct_functions(bank.basis))


def factors_of(bank: FilterBank) -> Tensor | None:
    """`product_factors` of the bank's basis."""
    return once(bank, "_factors", lambda: product_factors(bank.basis))


def dct_functions(basis: Tensor) -> list[int] | None:
    """For each function of `basis` (L, K, K) its raster number u*K + v in the DCT-II; None if one is not there."""
    if basis.shape[1] != basis.shape[2]:
        return None
    dct = dct_basis(basis.shape[1:]).flatten(1)
    distance = (basis.detach().cpu().double().flatten(1)[:, None] - dct).abs().amax(2).min(1)
    return distance.indices.tolist() if bool((distance.values < 1e-9).all()) else None


def product_factors(basis: Tensor) -> Tensor | None:
    """(L, kh + kw) float32: for each function (of L, kh, kw, float64) the column and the row whose outer product it is,
    to 1e-9 of its norm; None if one is no product."""
    left, size, right = torch.linalg.svd(basis.cpu())
    if bool((size[:, 1:] > 1e-9 * size[:, :1]).any()):
        return None
    root = size[:, :1].sqrt()
    return torch.cat([left[:, :, 0] * root, right[:, 0] * root], 1).float().to(basis.device)
