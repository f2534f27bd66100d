"""A bank as bytes in a checkpoint: it comes back, and damage is told."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support.limited_memory import limited_memory

import explainfix_ext as efx
from explainfix_ext import FilterBank
from explainfix_ext.filters.bank_bytes import decode_bank, encode_bank

BANKS = {
    "recipe": lambda: efx.make_bank("psine", 8, 4, 3, seed=5, density=0.5, gain="kaiming"),
    "mixed": lambda: efx.make_bank("haar", 8, 4, 3, seed=5, shared_basis=2, compat="paper"),
    "given": lambda: FilterBank.from_weight(torch.randn(8, 4, 3, 5).bfloat16()),
    "compressed": lambda: efx.make_bank("unchanged", 8, 4, 3, seed=0, weight=torch.randn(8, 4, 3, 3), energy=0.7),
    "index": lambda: FilterBank(efx.dct_basis((3, 3)), index=torch.randint(0, 9, (5, 6), dtype=torch.uint8), scale=0.5),
    "hadamard": lambda: efx.make_bank("hadamard", 8, 4, 3, seed=5, terms=2, density=0.5, groups=2),
    "cut": lambda: cut(efx.make_bank("hadamard", 12, 12, 3, seed=5, terms=2, groups=2)),
}


def cut(bank: FilterBank) -> FilterBank:
    """Eight outputs of four inputs each, as pruning leaves them: no recipe has these."""
    assert bank.hadamard is not None
    outputs = torch.tensor([0, 2, 3, 5, 7, 8, 9, 11])
    kept = bank.hadamard.cut(outputs, torch.tensor([0, 1]), torch.tensor([0, 1, 2, 4]))
    return dataclasses.replace(bank, hadamard=kept, recipe=None)


@pytest.mark.parametrize("kind", BANKS)
def test_state_brings_the_bank_back(kind: str) -> None:
    bank = BANKS[kind]()
    state = encode_bank(bank)
    back = decode_bank(state)
    assert torch.equal(back.weight(torch.float64), bank.weight(torch.float64))
    assert back.recipe == bank.recipe
    assert [t.dtype for t in back.tensors] == [t.dtype for t in bank.tensors]
    assert back.groups == bank.groups
    if bank.recipe is not None:
        assert state.numel() < 700


def tampered(state: torch.Tensor, change: Callable[[dict], object], body: bytes | None = None) -> torch.Tensor:
    data = state.numpy().tobytes()
    (length,) = struct.unpack("<I", data[4:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    if body is not None:
        header["sha256"] = hashlib.sha256(body).hexdigest()
    return with_header(json.dumps(header).encode(), data[8 + length :] if body is None else body)


def with_header(text: bytes, body: bytes = b"") -> torch.Tensor:
    return torch.frombuffer(bytearray(b"EFXB" + struct.pack("<I", len(text)) + text + body), dtype=torch.uint8)


def test_damaged_state_says_so() -> None:
    recipe, given = encode_bank(BANKS["recipe"]()), encode_bank(BANKS["given"]())
    flipped = given.clone()
    flipped[-3] ^= 0x40
    for state, message in (
        (torch.zeros(4), "must be a uint8 vector"),
        (torch.zeros(20, dtype=torch.uint8), "must begin with b'EFXB'"),
        (recipe[:40], "header is damaged"),
        (torch.frombuffer(bytearray(b"EFXB\x50\xc3\0\0" + b"[" * 50_000), dtype=torch.uint8), "header is damaged"),
        (given[:-5], "the saved filters are damaged: the hash"),
        (flipped, "the saved filters are damaged: the hash"),
        (tampered(recipe, lambda h: h.pop("shape")), "header is damaged: KeyError 'shape'"),
        (tampered(recipe, lambda h: h.update(recipe=3)), "header is damaged: AttributeError"),
        (tampered(recipe, lambda h: h["recipe"].update(version=9)), "recipe version must be 1 to 2, got 9"),
        (tampered(recipe, lambda h: h["recipe"].update(version=True)), "recipe version must be 1 to 2, got True"),
        (tampered(recipe, lambda h: h["recipe"].update(init="psin")), "unknown init 'psin'; nearest: psine"),
        (tampered(recipe, lambda h: h["recipe"].update(seed=6)), "fingerprint differs"),
    ):
        with pytest.raises(ValueError) as error:
            decode_bank(state)
        assert message in str(error.value)


def test_any_flipped_bit_is_found_or_harmless() -> None:
    """Nothing but a ValueError comes out, and no other filters go in."""
    for kind in ("recipe", "given"):
        bank = BANKS[kind]()
        state, weight = encode_bank(bank), bank.weight(torch.float64)
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            damaged = state.clone()
            at = int(torch.randint(len(state), (), generator=generator))
            damaged[at] ^= 1 << int(torch.randint(8, (), generator=generator))
            try:
                back = decode_bank(damaged)
            except ValueError:
                continue
            torch.testing.assert_close(back.weight(torch.float64), weight, rtol=1e-4, atol=1e-4)


# --- one length -----------------------------------------------------------------------------------------------------


def test_recipes_are_one_length_whatever_they_ask_for() -> None:
    banks = [efx.make_bank("dct2", 8, 4, 3, seed=seed) for seed in (0, 2**63 - 1)]
    banks += [efx.make_bank("haar", 512, 4, 11, seed=5, density=1 / 3, gain="kaiming", shared_basis=2, compat="paper")]
    banks += [efx.make_bank("hadamard", 2048, 2048, 3, seed=2**63 - 1, density=2**-5, groups=8, terms=2, functions=3)]
    assert {encode_bank(bank).numel() for bank in banks} == {640}
    for same in ([bank.without_steering() for bank in banks[:2]], [BANKS["given"]() for _ in range(8)]):
        assert len({encode_bank(bank).numel() for bank in same}) == 1


def test_bytes_of_before_had_any_length() -> None:
    state = encode_bank(BANKS["recipe"]())
    shorter = tampered(state, lambda header: None)
    assert len(shorter) < len(state)
    assert torch.equal(decode_bank(shorter).weight(), decode_bank(state).weight())


# --- small inputs that ask for much, and numbers that are none ------------------------------------------------------

HUGE = [200000, 200000, 3, 3]


def test_filters_of_another_shape_are_not_made() -> None:
    recipe, given = (encode_bank(BANKS[kind]()) for kind in ("recipe", "given"))
    with limited_memory():
        for state, shape, message in (
            (tampered(recipe, lambda h: h.update(shape=HUGE)), (8, 4, 3, 3), r"= \[8, 4, 3, 3\], got \[200000, 200000"),
            (tampered(recipe, lambda h: h.update(shape=HUGE)), None, r"too many to be made for no layer: \[200000"),
            (tampered(recipe, lambda h: h.update(shape=[1, 1, 1, 1 << 20])), None, "too many to be made for no layer"),
            (tampered(recipe, lambda h: h.update(shape=[8, 4, 3, -3])), None, "header is damaged: shape"),
            (
                tampered(given, lambda h: h["tensors"][1].update(shape=[1 << 20, 1 << 20, 9])),
                None,
                "has 960 bytes of 19791209299968",
            ),
            (tampered(given, lambda h: h.update(shape=[9, 4, 3, 5])), None, r"shape \[9, 4, 3, 5\] with tensors of"),
            (with_header(b"[" * 60000), None, "header is damaged: maximum recursion depth"),
            (with_header(b" " * (1 << 17)), None, "header is damaged: it has 131072 bytes"),
            (torch.tensor(69, dtype=torch.uint8).expand(1 << 40), None, "one byte, repeated 1099511627776 times"),
            (torch.empty(9, dtype=torch.uint8, device="meta"), None, "on the meta device: they have no bytes to load"),
        ):
            with pytest.raises(ValueError, match=message):
                decode_bank(state, None, shape)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e308])
def test_filters_must_be_finite(number: float) -> None:
    bank = FilterBank(efx.dct_basis((3, 3)), coeff=torch.randn(8, 4, 9, dtype=torch.float64))
    state, basis, coeff = encode_bank(bank), bank.basis.clone(), bank.coeff.clone()
    basis[8, 0, 0] = coeff[0, 0, 0] = number
    for crafted in (
        tampered(state, lambda h: h.update(scale=number)),
        tampered(state, lambda h: None, bank.basis.numpy().tobytes() + coeff.numpy().tobytes()),
        tampered(state, lambda h: None, basis.numpy().tobytes() + bank.coeff.numpy().tobytes()),
    ):
        with pytest.raises(ValueError, match="must be finite, got"):
            decode_bank(crafted)


def test_fingerprints_hold_for_tensors_and_are_numbers() -> None:
    state = encode_bank(BANKS["index"]())
    for change in (
        lambda h: h.update(scale=0.6),
        lambda h: h["fingerprint"].update(norm=float("inf")),
        lambda h: h["fingerprint"].update(norm=10**400),
        lambda h: h["fingerprint"].update(projections=[]),
    ):
        with pytest.raises(ValueError, match="fingerprint differs|OverflowError|shorter"):
            decode_bank(tampered(state, change))


def with_tensors(state: torch.Tensor, bank: FilterBank, **tensors: torch.Tensor) -> torch.Tensor:
    """The state of a hadamard bank with other tensors in the place of its own, and a hash that fits."""
    names = ("basis", "columns", "rows", "outputs", "inputs")
    parts = [tensors.get(name, own) for name, own in zip(names, bank.tensors, strict=True)]

    def describe(header: dict) -> None:
        for entry, part in zip(header["tensors"], parts, strict=True):
            entry.update(shape=list(part.shape), dtype=str(part.dtype).removeprefix("torch."))

    return tampered(state, describe, b"".join(part.contiguous().numpy().tobytes() for part in parts))


def test_hostile_hadamard_filters() -> None:
    bank = BANKS["cut"]()
    state, filters = encode_bank(bank), bank.hadamard
    many = torch.zeros(1, 1 << 15, 3), torch.zeros(1, 1, 1, 1 << 15, 3)
    places = torch.zeros(1 << 15, dtype=torch.int16)
    wide = with_tensors(state, bank, columns=many[0], rows=many[1], outputs=places, inputs=places[None])
    terms = torch.zeros(4096, 8, 3), torch.zeros(4096, 1, 1, 4, 3)
    nan = filters.rows.clone()
    nan[0, 0, 0, 0, 0] = torch.nan
    with limited_memory():
        for crafted, message in (
            (wide, r"shape \[8, 4, 3, 3\] with tensors of \[32768, 32768, 3, 3\]"),
            (tampered(wide, lambda h: h.update(shape=[1 << 15, 1 << 15, 3, 3])), "too many to be made for no layer"),
            (with_tensors(state, bank, columns=terms[0], rows=terms[1]), "of at most kh kw = 9 terms, got 4096"),
            (with_tensors(state, bank, outputs=filters.outputs + 8), r"outputs must be in \[0, 8\), got"),
            (with_tensors(state, bank, inputs=filters.inputs - 4), r"inputs must be in \[0, 4\), got -4"),
            (with_tensors(state, bank, rows=nan), "must be finite, got NaN"),
            (with_tensors(state, bank, rows=filters.rows * 1e30 * 1e30), "must be finite, got NaN, inf"),
            (with_tensors(state, bank, basis=bank.basis * 2), "their basis is not orthonormal"),
            (with_tensors(state, bank, basis=bank.basis[:1]), "their basis is not orthonormal, or not of"),
            (tampered(state, lambda h: h["hadamard"].update(order=6)), "order must be a power of two up to 32768"),
            (
                tampered(state, lambda h: h["hadamard"].update(stages=4)),
                "stages must be a mask of bits below order = 4",
            ),
            (tampered(state, lambda h: h["hadamard"].update(stages=1)), "fingerprint differs"),
            (tampered(state, lambda h: h.pop("hadamard")), "header is damaged: KeyError"),
            (tampered(state, lambda h: h["tensors"].pop()), "header is damaged: TypeError"),
            (tampered(saved("hadamard"), lambda h: h.update(groups=1)), "fingerprint differs"),
            (tampered(saved("hadamard"), lambda h: h.update(groups=3)), "groups must divide out_channels"),
            (tampered(saved("hadamard"), lambda h: h.update(groups=-1)), "header is damaged: shape"),
            (tampered(saved("hadamard"), lambda h: h["recipe"].update(density=0.3)), "must be a power of two"),
        ):
            with pytest.raises(ValueError, match=message) as error:
                decode_bank(crafted)
            assert len(str(error.value).splitlines()) == 1


def test_bytes_that_became_other_numbers() -> None:
    """As `.half()`, or the average of checkpoints with the same filters, makes them; other filters have no average."""
    for kind, other in (("recipe", efx.make_bank("psine", 8, 4, 3, seed=6)), ("given", BANKS["given"]())):
        bank = BANKS[kind]()
        state = encode_bank(bank)
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64):
            assert torch.equal(decode_bank(state.to(dtype)).weight(), bank.weight())
        with pytest.raises(ValueError, match=r"were averaged or scaled as if they were weights, and are lost [^\n]*$"):
            decode_bank((state.double() + encode_bank(other).double()) / 2)


# --- any input ------------------------------------------------------------------------------------------------------

HOSTILE = [None, True, -1, 0, 1 << 20, 1 << 31, 10**400, 1e308, float("nan"), "", "x\ny", [], {}, [[]], {"a": 1}, HUGE]


def paths_of(node: Any, path: tuple = ()) -> list[tuple]:
    """Where a value of the header can be replaced."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [where for key, value in items for where in ((*path, key), *paths_of(value, (*path, key)))]


@functools.cache
def saved(kind: str) -> torch.Tensor:
    return encode_bank(BANKS[kind]())


@st.composite
def states(draw: st.DrawFn) -> torch.Tensor:
    """A saved bank with other values in its header, then other bytes, then an end that is missing."""
    state = saved(draw(st.sampled_from(list(BANKS))))

    def change(header: dict) -> None:
        for _ in range(draw(st.integers(0, 3))):
            where = draw(st.sampled_from(paths_of(header)))
            node: Any = header
            for key in where[:-1]:
                node = node[key]
            node[where[-1]] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))

    state = tampered(state, change)
    for _ in range(draw(st.integers(0, 2))):
        state[draw(st.integers(0, len(state) - 1))] = draw(st.integers(0, 255))
    return state[: draw(st.sampled_from([len(state), len(state), draw(st.integers(0, len(state)))]))]


def check_bank_or_one_line(state: torch.Tensor) -> None:
    for shape in (None, (8, 4, 3, 3)):
        said = "a bank"
        try:
            assert decode_bank(state, None, shape).weight().isfinite().all()
        except ValueError as error:
            said = str(error)
        assert said
        assert len(said.splitlines()) == 1
        assert len(said) < 700


quick = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@seed(0)
@quick
@given(states())
def test_any_bytes_give_a_bank_or_one_line(state: torch.Tensor) -> None:
    with limited_memory():
        check_bank_or_one_line(state)


@pytest.mark.slow
@seed(1)
@settings(quick, max_examples=2000)
@given(states())
def test_any_of_many_bytes_give_a_bank_or_one_line(state: torch.Tensor) -> None:
    with limited_memory():
        check_bank_or_one_line(state)
