"""What is found out about a bank once, and kept with it: a FilterBank is immutable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from .bank import FilterBank
from .basis import dct_basis
from .packing_low_rank import product_factors

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
    """For each basis function its number u K + v among the DCT-II functions; None if one is none of them. Those are
    products of two rows of the DCT, which the kernels compute fast."""

    def find() -> list[int] | None:
        dct = dct_basis(bank.kernel_size).flatten(1)
        distance = (bank.basis.cpu().flatten(1)[:, None] - dct).abs().amax(2)
        return distance.argmin(1).tolist() if bool((distance.amin(1) < 1e-9).all()) else None

    return once(bank, "_dct", find)


def factors_of(bank: FilterBank) -> Tensor | None:
    """`product_factors` of the bank's basis."""
    return once(bank, "_factors", lambda: product_factors(bank.basis))
