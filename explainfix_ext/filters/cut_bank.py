"""Takes some filters of a bank as a bank of their own: for pruning, and for the levels of a layer."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .bank import FilterBank


def cut_bank(bank: FilterBank, outputs: Tensor, groups: Tensor, columns: Tensor) -> FilterBank:
    """Returns the filters of some outputs, groups and input channels of each group, by number."""
    if bank.hadamard is not None:
        return dataclasses.replace(bank, hadamard=bank.hadamard.cut(outputs, groups, columns), recipe=None)
    steering = bank.steering.index_select(0, outputs.to(bank.device)).index_select(1, columns.to(bank.device))
    return _steered(bank, steering)


def bank_rows(bank: FilterBank, outputs: slice, groups: int) -> FilterBank:
    """Returns the filters of consecutive outputs, which are whole groups: views, but for a hadamard bank."""
    if bank.hadamard is None:
        return _steered(bank, bank.steering[outputs])
    size = bank.shape[0] // groups
    kept = torch.arange(outputs.start // size, -(-outputs.stop // size))
    return cut_bank(bank, torch.arange(outputs.start, outputs.stop), kept, torch.arange(bank.shape[1]))


def _steered(bank: FilterBank, steering: Tensor) -> FilterBank:
    index, coeff = (steering, None) if bank.index is not None else (None, steering)
    return dataclasses.replace(bank, index=index, coeff=coeff, recipe=None)
