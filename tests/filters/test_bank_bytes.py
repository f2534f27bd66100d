"""A bank as bytes in a checkpoint: it comes back, and damage is told."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import pytest
import torch

import explainfix_ext as efx
from explainfix_ext import FilterBank
from explainfix_ext.filters.bank_bytes import decode_bank, encode_bank

BANKS = {
    "recipe": lambda: efx.make_bank("psine", 8, 4, 3, seed=5, density=0.5, gain="kaiming"),
    "mixed": lambda: efx.make_bank("haar", 8, 4, 3, seed=5, shared_basis=2, compat="paper"),
    "given": lambda: FilterBank.from_weight(torch.randn(8, 4, 3, 5).bfloat16()),
    "compressed": lambda: efx.make_bank("unchanged", 8, 4, 3, seed=0, weight=torch.randn(8, 4, 3, 3), energy=0.7),
    "index": lambda: FilterBank(efx.dct_basis((3, 3)), index=torch.randint(0, 9, (5, 6), dtype=torch.uint8), scale=0.5),
}


@pytest.mark.parametrize("kind", BANKS)
def test_state_brings_the_bank_back(kind: str) -> None:
    bank = BANKS[kind]()
    state = encode_bank(bank)
    back = decode_bank(state)
    assert torch.equal(back.weight(torch.float64), bank.weight(torch.float64))
    assert back.recipe == bank.recipe
    assert back.steering.dtype == bank.steering.dtype
    if bank.recipe is not None:
        assert state.numel() < 700


def tampered(state: torch.Tensor, change: Callable[[dict], object]) -> torch.Tensor:
    data = state.numpy().tobytes()
    (length,) = struct.unpack("<I", data[4:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return torch.frombuffer(
        bytearray(data[:4] + struct.pack("<I", len(text)) + text + data[8 + length :]), dtype=torch.uint8
    )


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
        (tampered(recipe, lambda h: h["recipe"].update(version=9)), "recipe version must be 1, got 9"),
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
