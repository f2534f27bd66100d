"""Spectra: what they say of known energies, their table, and their JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from support.compare import relative_error
from support.explained import Shapes, batches, make
from torch import nn

import explainfix_ext as efx

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")


def test_a_dct2_bank_is_flat_and_equals_its_counts() -> None:
    conv = efx.FixedConv2d(9, 16, 3, init="dct2", seed=0)  # each output takes each of 9 functions once
    spectra = efx.explainsteer(conv)
    assert relative_error(spectra.ed[""], torch.full((9,), conv.bank.scale / 9, dtype=torch.float64)) < 1e-12
    assert spectra.centre[""] == pytest.approx(0.5)
    assert spectra.low[""] == pytest.approx(3 / 9)
    assert spectra.flat == {"": pytest.approx(3 / 9)}
    sparse = efx.FixedConv2d(16, 32, 5, init="dct2", groups=2, seed=0, density=0.3, gain="kaiming")
    index = sparse.bank.index.flatten().long()
    shares = torch.stack([(index == k).double().mean() for k in efx.frequency_order((5, 5))])  # 0.3 in all
    assert relative_error(efx.explainsteer(sparse).ed[""], sparse.bank.scale * shares) < 1e-12


def test_kinds_and_skipped_layers_are_named() -> None:
    assert [efx.explainsteer(make(k, Shapes)).filters["square"] for k in ("learned", "frozen", "dct2", "mixed")] == [
        "learned",
        "frozen",
        "fixed",
        "mixed",
    ]
    model = nn.Sequential(
        nn.Conv2d(3, 4, (1, 3)), nn.ConvTranspose2d(4, 4, 2), nn.ConvTranspose2d(4, 4, 1), nn.Conv2d(4, 4, 3)
    )
    model[3].weight.data.zero_()
    spectra = efx.explainsteer(model)
    assert spectra.skipped == {"1": "ConvTranspose2d"}
    assert math.isnan(spectra.centre["3"])
    text = str(spectra)
    assert "0: no e_0, the kernel is not square" in text
    assert "1: skipped, ConvTranspose2d has no spectrum" in text
    assert "without saliency" in text
    assert text.splitlines()[1].split()[:3] == ["0", "learned", "1x3"]
    assert text.splitlines()[2].split()[-3:] == ["0", "-", "-"]


def test_json_keeps_every_number(tmp_path: Path) -> None:
    spectra = efx.explainsteer(make("dct2", Shapes), batches(2), compat="paper")
    spectra.save(tmp_path / "spectra.json")
    again = efx.Spectra.from_json((tmp_path / "spectra.json").read_text())
    for field in ("ed", "e1", "e0"):
        ours, theirs = getattr(spectra, field), getattr(again, field)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for field in ("kernels", "filters", "saliency", "compat", "skipped"):
        assert getattr(again, field) == getattr(spectra, field)
    for text in ("", "[]", '{"format": "something else"}', "[" * 100_000):
        with pytest.raises(ValueError, match=r"text must be what Spectra.to_json\(\) gives"):
            efx.Spectra.from_json(text)
    with pytest.raises(ValueError, match="version 1, got 2"):
        efx.Spectra.from_json(json.dumps(json.loads(spectra.to_json()) | {"version": 2}))
