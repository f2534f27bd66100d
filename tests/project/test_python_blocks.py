"""The Python blocks of README and of the site's pages run, one after another, as a reader would paste them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.documents import PAGES, blocks, imported
from support.paths import ROOT

from explainfix_ext.filters import registry

SLOW = {"gallery.md"}  # trains networks
WITH_BLOCKS = [page for page in PAGES if blocks(page.read_text(), "python")]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else ()) for page in WITH_BLOCKS],
    ids=[page.relative_to(ROOT).as_posix() for page in WITH_BLOCKS],
)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has a scope of its own. Where a block needs what is not installed, it and those after it are skipped."""
    monkeypatch.chdir(tmp_path)  # examples write pictures and checkpoints
    pytest.importorskip("matplotlib", reason="pictures need the extra `demo`")
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))  # and register initialisations
    scope: dict = {}
    for block in blocks(page.read_text(), "python"):
        for package in sorted(imported(block)):
            pytest.importorskip(package, reason=f"{page.name} needs {package} (extras `demo` and `test`)")
        exec(compile(block, page.name, "exec"), scope)


def test_what_a_block_imports() -> None:
    assert imported("import a.b, c\nfrom d.e import f\nimport explainfix_ext as efx") == {"a", "c", "d"}
    assert ROOT / "README.md" in WITH_BLOCKS
