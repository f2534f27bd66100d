"""The site's pictures are drawn by code, the same each time, and say what their pages say."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from support.paths import ROOT

import explainfix_ext as efx

pytest.importorskip("matplotlib", reason="pictures need the extra `demo`")
DOCS = ROOT / "docs"
FOLDER = DOCS / "pictures"
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in ("how_it_works", "gallery")}
QUICK = ("filters", "butterfly", "plans", "cpu", "gpu")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the pictures' folder, and forgets them all afterwards: their names are short, and bench/ has
    a `gpu`, too."""
    for path in FOLDER.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    before = set(sys.modules)
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def pictures(text: str) -> dict[str, str]:
    """The path of each picture of a page, and its alternative text."""
    return {path: alt for alt, path in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)}


@pytest.mark.parametrize("name", QUICK)
def test_a_picture_is_the_same_each_time(name: str, module: Any, tmp_path: Path) -> None:
    save, draw = module("style").save, module(name).draw
    first, second = (save(draw(), name, tmp_path).read_bytes() for _ in range(2))
    assert first == second
    text = first.decode()
    ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert not any(colour in text.partition("</style>")[2] for colour in module("style").DARK)


def test_pages_and_pictures_belong_together(module: Any) -> None:
    shown = {Path(path).stem for path in pictures(PAGES["how_it_works"])}
    assert shown == set(module("draw").NAMES) == {path.stem for path in FOLDER.glob("*.svg")}
    written = set(re.findall(r'(?:savefig|plot)\("([^"]+)"', PAGES["gallery"]))
    shown = {Path(path).name for path in pictures(PAGES["gallery"]) if path.startswith("pictures/")}
    assert written == shown == {path.name for path in FOLDER.glob("*.png")}


@pytest.mark.parametrize("page", PAGES)
def test_pictures_have_words_for_those_who_do_not_see_them(page: str) -> None:
    for path, alt in pictures(PAGES[page]).items():
        assert (DOCS / path).exists(), path
        assert len(alt) > 30, path


def test_numbers_in_words_are_those_drawn(module: Any) -> None:
    alt = {Path(path).stem: alt for path, alt in pictures(PAGES["how_it_works"]).items()}
    counts = {mode: sum(module("memory").kept(mode).values()) for mode in ("off", "exact", "recompute", "int8")}
    assert counts == pytest.approx({"off": 6, "exact": 4, "recompute": 2, "int8": 0.6}, abs=0.1)
    assert "torch keeps six activations, exact four, recompute two, int8 0.6" in alt["memory"]
    operations = module("arithmetic").operations
    assert [operations(init, 256) for init in ("ghaar4_s1", "dct2", "hadamard")] == [1024, 256, 14]
    assert "at 256 channels 2,304 dense, 1,024 with four functions, 256 with an index, 14" in alt["arithmetic"]
    stored = [efx.make_bank(init, 64, 64, 3, seed=0).nbytes for init in ("dct2", "ghaar4_s1", "hadamard")]
    assert stored == [4744, 65824, 2080]
    assert "147,456 bytes as a weight, 4,744 as an index, 65,824 as coefficients, 2,080" in alt["banks"]
    assert torch.zeros(64, 64, 3, 3).nbytes == 147456
