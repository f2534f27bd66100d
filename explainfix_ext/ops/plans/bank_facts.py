"""Facts about a FilterBank, found once and kept in its cache: density, DCT functions."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
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
    """Returns each basis function's raster number u*K + v in the DCT-II, whose functions kernels compute fast, or None
    if one is not there."""
    found = signed_dct_of(bank)
    return None if found is None or found.negative.any() else found.number.tolist()


def signed_dct_of(bank: FilterBank) -> SignedDct | None:
    """Returns which DCT-II function each basis function is, or is the negative of, or None; found once."""
    return once(bank, "signed dct", lambda: signed_dct(bank.basis))


class SignedDct(NamedTuple):
    """This says of each of L functions its `number` u*K + v in the DCT-II, and if it is the `negative` of that one."""

    number: NDArray[np.int64]
    negative: NDArray[np.bool_]


def signed_dct(basis: Tensor) -> SignedDct | None:
    """Finds for each function of `basis` (L, K, K) the DCT-II function that it is plus or minus; None if one is not."""
    if basis.shape[1] != basis.shape[2]:
        return None
    functions, dct = basis.detach().cpu().double().flatten(1)[:, None], dct_basis(basis.shape[1:]).flatten(1)
    plus, minus = ((functions - sign * dct).abs().amax(2).min(1) for sign in (1, -1))
    negative = minus.values < plus.values
    if not bool((torch.minimum(plus.values, minus.values) < 1e-9).all()):
        return None
    return SignedDct(torch.where(negative, minus.indices, plus.indices).numpy(), negative.numpy())
