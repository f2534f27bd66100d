"""README, the site's pages, CONTRIBUTING and CHANGELOG are true: what they name exists and can be called."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.documents import (
    DOCUMENTS,
    broken_links,
    commands,
    exists,
    files_named,
    missing_name,
    quoted,
    wrong_command,
)  # fmt: skip
from support.paths import ROOT

import explainfix_ext as efx

if not (ROOT / ".github").is_dir():
    pytest.skip("not a git checkout: a source distribution has no pictures", allow_module_level=True)
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix())


@each_document
def test_commands_can_be_run(document: Path) -> None:
    text = document.read_text()
    inline = [shlex.split(words) for words in quoted(text) if words.startswith(("explainfix ", "bash ", "python "))]
    wrong = [wrong_command(words) for words in commands(text)]
    wrong += [wrong_command(words, whole=False) for words in inline]
    assert [reason for reason in wrong if reason] == []


@each_document
def test_files_links_and_names_exist(document: Path) -> None:
    text = document.read_text()
    assert [name for name in files_named(text) if not exists(name)] == []
    assert list(broken_links(text, document)) == []
    names = {n for words in quoted(text) for n in re.findall(r"\b(?:efx|explainfix_ext)(?:\.[a-z_]\w*)+", words)}
    assert [missing_name(name) for name in names if "/" not in name and missing_name(name)] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_initialisations_are_all_explained() -> None:
    assert set(efx.initializers()) - set(quoted((ROOT / "docs" / "which_init.md").read_text())) == set()


def test_these_tests_can_fail() -> None:
    text = "```bash\nOMP=1 python bench/no.py && explainfix demo --no 1  # --more\npytest tests/test_no.py\n```\n"
    assert commands(text)[1] == ["explainfix", "demo", "--no", "1"]
    reasons = [wrong_command(words) for words in commands(text)]
    assert reasons[0] == "bench/no.py does not exist"
    assert "No such option: --no" in (reasons[1] or "")
    assert reasons[2] == "tests/test_no.py does not exist"
    assert "Missing parameter: out" in (wrong_command(["explainfix", "train"]) or "")
    assert wrong_command(["explainfix", "train", "--help"]) is None
    assert wrong_command(["explainfix", "train", "--epochs", "3"], whole=False) is None
    assert "has no option --epoch" in (wrong_command(["explainfix", "train", "--epoch", "3"], whole=False) or "")
    assert wrong_command(["explainfix", "training"]) == "explainfix has no command training"
    named = files_named("`csrc/cpu/no.h`, `basis.py`, `pack_*.py`, `nowhere.py`, `a/b`, `runs/x`")
    assert named == ["basis.py", "csrc/cpu/no.h", "nowhere.py", "pack_*.py"]
    assert [exists(name) for name in named] == [True, False, False, True]
    assert missing_name("efx.convert") is None
    assert missing_name("explainfix_ext.memory.flatten") is None
    assert missing_name("explainfix_ext.memory.no") == "explainfix_ext.memory.no: no no"
    page = "# One `name`, two\n[a](#one-name-two) [b](#no) [c](README.md) [d](no.md) [e](README.md#no) `[f](no)`"
    assert list(broken_links(page, ROOT / "page.md")) == ["#no", "no.md", "README.md#no"]
