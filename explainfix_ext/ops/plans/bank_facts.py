"""What is found out about a bank once, and kept with it: a FilterBank is immutable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from explainfix_ext.filters.bank import FilterBank

from .pack_cuda_index import dct_functions
from .pack_cuda_low_rank import product_factors

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
