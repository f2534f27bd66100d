"""The README's Python blocks run, one after another as a reader would paste them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_python_blocks_run(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example writes a picture
    pytest.importorskip("torchvision", reason="torchvision (extra `models`) is not installed")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(blocks) >= 2
    scope: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert "17 spatial convolutions fixed, 0 left" in capsys.readouterr().out


def test_files_named_in_the_readme_exist() -> None:
    root = README.parent
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (root / link).exists(), link
