"""Hadamard filters: their formula, written as loops, their scale and density, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

import explainfix_ext as efx
from explainfix_ext.filters import registry
from explainfix_ext.filters.hadamard import MOST_PLACES, HadamardFilters


def random_filters(
    outputs: int, inputs: int, kernel: tuple[int, int], *, groups: int = 1, order: int = 1, terms: int = 1,
    chunks: int = 1, stages: int | None = None,
) -> HadamardFilters:  # fmt: skip
    """Filters with any places and any numbers; inputs are those of a group."""
    return HadamardFilters(
        torch.randn(terms, outputs, kernel[0]),
        torch.randn(terms, chunks, groups, inputs, kernel[1]),
        torch.randint(chunks * order, (outputs,), dtype=torch.int16),
        torch.randint(order, (groups, inputs), dtype=torch.int16),
        order,
        order - 1 if stages is None else stages,
    )


def naive_weight(f: HadamardFilters) -> torch.Tensor:
    """The formula of filters/hadamard.py, filter by filter."""
    outputs, inputs, kh, kw = f.shape
    weight = torch.zeros(outputs, inputs, kh, kw, dtype=torch.float64)
    for o in range(outputs):
        group, (chunk, p) = o // (outputs // f.groups), divmod(int(f.outputs[o]), f.order)
        for i in range(inputs):
            q = int(f.inputs[group, i])
            if any((p ^ q) >> bit & 1 for bit in range(15) if 1 << bit < f.order and not f.stages >> bit & 1):
                continue
            sign = (-1) ** sum(p >> bit & q >> bit & 1 for bit in range(15) if f.stages >> bit & 1)
            for column, row in zip(f.columns, f.rows, strict=True):
                weight[o, i] += sign * torch.outer(column[o].double(), row[chunk, group, i].double())
    return weight


GEOMETRIES: list[dict[str, Any]] = [
    {"outputs": 5, "inputs": 7, "kernel": (3, 3), "order": 4},
    {"outputs": 12, "inputs": 6, "kernel": (1, 5), "order": 4, "chunks": 3, "groups": 2},
    {"outputs": 6, "inputs": 1, "kernel": (2, 3), "order": 1, "groups": 6},
    {"outputs": 9, "inputs": 40, "kernel": (3, 1), "order": 16, "terms": 3, "stages": 0b1010},
    {"outputs": 8, "inputs": 8, "kernel": (3, 3), "order": 8, "terms": 2, "stages": 0},
    {"outputs": 20, "inputs": 4, "kernel": (7, 5), "order": MOST_PLACES},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_weight_is_the_formula(geometry: dict[str, Any]) -> None:
    filters = random_filters(**geometry)
    expected = naive_weight(filters)
    torch.testing.assert_close(filters.weight(0.5, torch.float64), 0.5 * expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(filters.nonzero, (expected != 0).any(-1).any(-1))
    assert filters.shape == tuple(expected.shape)


def test_a_cut_keeps_the_filters_that_stay() -> None:
    filters = random_filters(12, 6, (3, 3), groups=3, order=4, chunks=2, terms=2, stages=0b10)
    outputs, groups, columns = torch.tensor([1, 3, 8, 10]), torch.tensor([0, 2]), torch.tensor([0, 2, 5])
    kept = filters.cut(outputs, groups, columns)
    assert kept.groups == 2
    assert torch.equal(kept.weight(1.0, torch.float64), filters.weight(1.0, torch.float64)[outputs][:, columns])


@pytest.mark.parametrize("stages", [0b11, 0b01])
def test_whole_outputs_and_inputs_can_be_zero_and_no_single_filter(stages: int) -> None:
    filters = random_filters(12, 6, (3, 3), groups=3, order=4, chunks=2, terms=2, stages=stages)
    weight, zero = filters.weight(1.0, torch.float64), torch.zeros(12, 6, dtype=torch.bool)
    zero[[0, 5]] = True
    zero[4:8, 2] = True  # input 2 of group 1
    left = filters.without(zero)
    assert left is not None
    assert torch.equal(left.weight(1.0, torch.float64), weight.masked_fill(zero[..., None, None], 0))
    assert torch.equal(left.nonzero, filters.nonzero & ~zero)
    assert torch.equal(left.without(~left.nonzero).weight(1.0, torch.float64), left.weight(1.0, torch.float64))
    zero[tuple(left.nonzero.nonzero()[0])] = True
    assert filters.without(zero) is None


# --- what the initialisation makes of them ---------------------------------------------------------------------------


def drawn(out_channels: int = 40, in_channels: int = 24, kernel: Any = 3, **options: Any) -> efx.FilterBank:
    return efx.make_bank("hadamard", out_channels, in_channels, kernel, **{"seed": 0} | options)


@pytest.mark.parametrize("options", [{}, {"terms": 2}, {"functions": 3}, {"functions": 1, "groups": 4}], ids=str)
def test_filters_are_those_of_a_basis(options: dict[str, Any]) -> None:
    bank = drawn(**options)
    weight = bank.weight(torch.float64)
    assert bank.groups == options.get("groups", 1)
    assert bank.rank == options.get("functions", 2) ** 2
    torch.testing.assert_close(bank.basis.flatten(1) @ bank.basis.flatten(1).T, torch.eye(bank.rank).double())
    torch.testing.assert_close(bank.with_coefficients().weight(torch.float64), weight, rtol=0, atol=1e-7)
    ranks = torch.linalg.matrix_rank(weight, atol=1e-6)
    assert ranks.max() == min(options.get("terms", 1), options.get("functions", 2))


def test_a_bank_is_small() -> None:
    bank = drawn(96, 80)
    assert bank.nbytes <= 4000
    assert bank.weight().shape == (96, 80, 3, 3)


def test_every_geometry_has_filters() -> None:
    for o, i, groups, kernel in ((1, 1, 1, 1), (64, 3, 1, 7), (3, 64, 1, (1, 3)), (24, 24, 24, 3), (40, 20, 2, (5, 2))):
        bank = drawn(o, i, kernel, groups=groups)
        assert bank.shape[:2] == (o, i // groups)
        assert bank.density == 1


@pytest.mark.parametrize("options", [{}, {"terms": 3}, {"functions": 3}, {"density": 0.25}, {"groups": 2}], ids=str)
@pytest.mark.parametrize("channels", [(64, 64), (64, 128), (256, 32)], ids=str)
def test_variance_is_hes(channels: tuple[int, int], options: dict[str, Any]) -> None:
    """A convolution and a ReLU keep it: an output's filters have a squared norm of 2 on average."""
    squares = drawn(*channels, **options).weight(torch.float64).square().sum((1, 2, 3))
    assert abs(squares.mean() - 2) < (0.25 if "terms" in options else 1e-6)  # terms are not orthogonal
    assert squares.std() < 0.6 * 2


def test_density_is_nested_and_every_output_reads_something() -> None:
    banks = [drawn(64, 32, density=2.0**-s) for s in range(8)]
    weights = [bank.weight(torch.float64) / bank.scale for bank in banks]
    for fewer, more, dense, sparse in zip(banks[1:], banks, weights, weights[1:], strict=False):
        assert (fewer.nonzero <= more.nonzero).all()
        assert torch.equal(dense[fewer.nonzero].abs(), sparse[fewer.nonzero].abs())
    assert [bank.density for bank in banks] == [2.0 ** -min(s, 5) for s in range(8)]
    assert banks[-1].nonzero.any(1).all()
    assert all(bank.nbytes == banks[0].nbytes for bank in banks)


def test_uneven_channels_have_about_the_density_asked_for() -> None:
    assert abs(drawn(96, 80, density=0.25).density - 0.25) < 0.03


# --- bad input --------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "columns": torch.zeros(2, 6, 3),
    "rows": torch.zeros(2, 2, 3, 5, 3),
    "outputs": torch.zeros(6, dtype=torch.int16),
    "inputs": torch.zeros(3, 5, dtype=torch.int16),
    "order": 4,
    "stages": 3,
}
PLACES = torch.zeros(6, dtype=torch.int16)
BAD_FILTERS: dict[str, dict[str, Any]] = {
    "columns must be float32 [T, O, kh], got float32 [6, 3]": {"columns": torch.zeros(6, 3)},
    "columns must be float32 [T, O, kh], got float64 [2, 6, 3]": {"columns": torch.zeros(2, 6, 3).double()},
    "columns must be float32 [T, O, kh], got float32 [2, 0, 3]": {"columns": torch.zeros(2, 0, 3)},
    "columns must be of at most kh kw = 9 terms, got 10": {
        "columns": torch.zeros(10, 6, 3),
        "rows": torch.zeros(10, 2, 3, 5, 3),
    },
    "rows must be float32 [T = 2, J, groups, I/groups, kw], got float32 [1, 2, 3, 5, 3]": {
        "rows": torch.zeros(1, 2, 3, 5, 3)
    },
    "rows must be float32 [T = 2, J, groups, I/groups, kw], got float16 [2, 2, 3, 5, 3]": {"rows": GOOD["rows"].half()},
    "rows must be of groups that divide O = 6, got float32 [2, 2, 4, 5, 3]": {"rows": torch.zeros(2, 2, 4, 5, 3)},
    "order must be a power of two up to 32768, got 3": {"order": 3},
    "order must be a power of two up to 32768, got 0": {"order": 0},
    "order must be a power of two up to 32768, got 65536": {"order": 65536},
    "order must be a power of two up to 32768, got 4.0": {"order": 4.0},
    "stages must be a mask of bits below order = 4, got 4": {"stages": 4},
    "stages must be a mask of bits below order = 4, got -1": {"stages": -1},
    "outputs must be int16 [6], got int16 [5]": {"outputs": PLACES[:5]},
    "outputs must be int16 [6], got int64 [6]": {"outputs": PLACES.long()},
    "outputs must be in [0, 8), got 8 to 8": {"outputs": PLACES + 8},
    "outputs must be in [0, 8), got -1 to -1": {"outputs": PLACES - 1},
    "outputs must have at most 32768 places, got 65536": {"order": 32768},
    "inputs must be int16 [3, 5], got int16 [5, 3]": {"inputs": GOOD["inputs"].T},
    "inputs must be in [0, 4), got 4 to 4": {"inputs": GOOD["inputs"] + 4},
}


@pytest.mark.parametrize("message", BAD_FILTERS)
def test_bad_filters_say_what_was_expected(message: str) -> None:
    with pytest.raises(ValueError) as error:
        HadamardFilters(**GOOD | BAD_FILTERS[message])
    assert str(error.value) == message


BAD_OPTIONS: dict[str, dict[str, Any]] = {
    "terms must be 1 to 9, got 10": {"terms": 10},
    "terms must be 1 to 9, got True": {"terms": True},
    "functions must be 1 to 3, got 0": {"functions": 0},
    "functions must be 1 to 3, got 2.0": {"functions": 2.0},
    "density must be a power of two for hadamard filters, such as 0.5 or 0.125, got 0.3": {"density": 0.3},
    "hadamard filters must have at most 32768 channels, got 32769": {"in_channels": MOST_PLACES + 1},
    "init 'hadamard' takes no option 'compat'; it takes density, gain, shared_basis, version, terms, functions": {
        "compat": 1
    },
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_bad_options_say_what_was_expected(message: str) -> None:
    with pytest.raises(ValueError) as error:
        drawn(**BAD_OPTIONS[message])
    assert str(error.value) == message


def test_a_bank_must_be_of_one_kind_and_one_kernel_size() -> None:
    bank = drawn()
    with pytest.raises(ValueError, match="exactly one of coeff, index and hadamard must be given"):
        dataclasses.replace(bank, coeff=bank.coefficients())
    with pytest.raises(ValueError, match=r"hadamard must be for kernels \[5, 5\], got \[3, 3\]"):
        dataclasses.replace(bank, basis=efx.dct_basis((5, 5)))


def test_numbers_must_be_finite() -> None:
    def broken(layer: Any) -> efx.FilterBank:
        bank = drawn(8, 4)
        rows = torch.full_like(bank.hadamard.rows, math.nan)
        return dataclasses.replace(bank, hadamard=dataclasses.replace(bank.hadamard, rows=rows))

    registry.register("broken", "NaN")(broken)
    try:
        with pytest.raises(ValueError, match="init 'broken' must make finite filters, got NaN"):
            efx.make_bank("broken", 8, 4, 3, seed=0)
    finally:
        del registry._REGISTRY["broken"]
