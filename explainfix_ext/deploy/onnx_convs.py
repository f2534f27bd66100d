"""This module says what a fixed convolution becomes in an ONNX file: an operator of ours, or convolutions of ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.ops import hadamard_onnx
from explainfix_ext.ops.plans import crossovers
from explainfix_ext.ops.plans.bank_facts import dct_numbers, density_of, signed_dct_of
from explainfix_ext.ops.plans.cpu import geometry_fits, hadamard_geometry_fits
from explainfix_ext.ops.plans.pack_cpu_index import pack_index

DOMAIN = "explainfix"  # of the operators
HADAMARD_CHANNELS = 32  # of a group, the fewer of input and output: HadamardConv pays from here on


@dataclass
class FixedConv:
    """This is a convolution by fixed filters and what follows it: y = act(factor * conv(x) + shift + added).

    Attributes:
        bank: the filters.
        stride, padding, dilation, groups: of the convolution.
        factor, shift: of each output, (O,) float64.
        activation: "" or a name that the operators know.
    """

    bank: FilterBank
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    factor: NDArray[np.float64]
    shift: NDArray[np.float64]
    activation: str = ""


@dataclass(frozen=True)
class PlainConv:
    """This is a convolution as ONNX has it: a weight (O, I/groups, kh, kw), a bias (O,) or None, its geometry."""

    weight: NDArray
    bias: NDArray | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


def fastest(conv: FixedConv) -> str | None:
    """Names the operator of ours that is faster than ONNX Runtime's own convolution, if there is one.

    A file goes to machines that nobody knows: the crossovers are those of AVX2 beside torch, which are stricter than
    the ones of AVX-512. Beside ONNX Runtime, which was compared roughly with AVX-512, no operator within them was
    slower. A hadamard bank is compared with the three convolutions that `plain` makes of it.
    """
    bank, stride = conv.bank, conv.stride
    fewer = min(bank.shape[0] // conv.groups, bank.shape[1])
    if bank.hadamard is not None:
        fits = hadamard_geometry_fits(bank.kernel_size, stride, conv.dilation)
        return "HadamardConv" if fits and fewer >= HADAMARD_CHANNELS else None
    if 0 in bank.shape or (bank.shape[1] == 1 and conv.groups > 1):
        return None  # depthwise
    if not geometry_fits(bank.kernel_size, stride, conv.dilation):
        return None
    kernel = bank.kernel_size[0]
    if bank.index is not None:
        pays = crossovers.index_pays("avx2", False, kernel, stride[0], fewer, density_of(bank), False)
        return "IndexConv" if pays else None
    functions = dct_numbers(bank)
    dct = functions is not None and len(set(functions)) == len(functions)
    pays = crossovers.low_rank_pays("avx2", False, kernel, stride[0], fewer, bank.rank, dct)
    return "LowRankConv" if pays else None


def operator(conv: FixedConv) -> tuple[list[NDArray], dict[str, Any]]:
    """Returns the inputs of the bank's operator after x, and its attributes. csrc/onnx/convs.cpp reads both."""
    bank, factor, shift = conv.bank, conv.factor * conv.bank.scale, conv.shift.astype(np.float32)
    attributes: dict[str, Any] = {
        "stride": list(conv.stride),
        "padding": list(conv.padding),
        "groups": conv.groups,
        "activation": conv.activation,
    }
    basis = bank.basis.double().cpu().numpy()
    if bank.index is not None:
        dct = signed_dct_of(bank)
        words = pack_index(bank.index, bank.kernel_size[0], bank.rank, conv.groups, dct=dct, forward_only=True)
        return [words.numpy(), basis, factor.astype(np.float32), shift], attributes
    if bank.coeff is not None:
        coeff = bank.coeff.double().cpu().numpy() * factor[:, None, None]
        return [coeff.astype(np.float32), basis, shift], attributes
    filters = bank.hadamard
    assert filters is not None
    columns, *others = (t.cpu().numpy() for t in filters.tensors)
    columns = (columns * factor[:, None]).astype(np.float32)
    return [columns, *others, shift], attributes | {"order": filters.order, "stages": filters.stages}


def plain(conv: FixedConv) -> list[list[PlainConv]]:
    """Returns the convolutions of ONNX that compute the same, but for the activation: chains, whose results are added.

    It is one by the composed filters; for a hadamard bank three (ops/hadamard_onnx.py), where these are less work.
    """
    bank, factor = conv.bank, conv.factor[:, None, None, None]
    filters = bank.hadamard
    if filters is None or not hadamard_onnx.pays(filters.columns, filters.rows):
        weight = bank.weight(torch.float64).cpu().numpy() * factor
        return [[PlainConv(weight, conv.shift, conv.stride, conv.padding, conv.dilation, conv.groups)]]
    stride, padding, dilation = conv.stride, conv.padding, conv.dilation
    inputs, outputs = filters.groups * bank.shape[1], bank.shape[0]
    numbers = (filters.order, filters.stages, bank.scale, torch.float64)
    chains: list[list[PlainConv]] = []
    for weights in hadamard_onnx.three_weights(*filters.tensors, *numbers):
        row, mix, column = (w.cpu().numpy() for w in weights)
        shift = None if chains else conv.shift
        horizontal = PlainConv(row, None, (1, stride[1]), (0, padding[1]), (1, dilation[1]), inputs)
        mixing = PlainConv(mix, None, (1, 1), (0, 0), (1, 1), conv.groups)
        vertical = PlainConv(column * factor, shift, (stride[0], 1), (padding[0], 0), (dilation[0], 1), outputs)
        chains.append([horizontal, mixing, vertical])
    return chains
