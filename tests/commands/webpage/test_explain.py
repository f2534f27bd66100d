"""The command `explainfix explain`: what it prints, and which files it replaces."""

from __future__ import annotations

import re
import sys

import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from support.page import check_structure

from explainfix_ext.commands.explain import check_report

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")


def test_terminal_shows_findings_tables_and_the_file(run_explain, checkpoints, tmp_path):
    code, out, error = run_explain(f'"{checkpoints["learned"]}" --batches 2 --device cpu --html out/a.html')
    assert code == 0, error
    assert out.startswith("- In ")
    assert re.search(r"95% .* -> ", out)
    assert out.endswith("report: out/a.html\n")
    page = check_structure((tmp_path / "out" / "a.html").read_text())
    lines = [line.removeprefix("- ") for line in out.splitlines() if line.startswith("- ")]
    assert all(line in page.text["findings"] for line in lines)
    assert f"explainfix explain '{checkpoints['learned']}'".split("a<b>")[0] in page.text["origin"]
    assert f"torch {torch.__version__.split('+')[0]}" in page.text["origin"]


def test_only_a_former_report_is_replaced(run_explain, tmp_path):
    line = "flat --size 1x4x4 --classes 3 --device cpu"
    assert run_explain(line)[0] == run_explain(line)[0] == 0
    (tmp_path / "report.html").write_text("<html>mine</html>")
    code, _, error = run_explain(line)
    assert code == 2
    assert "report.html is there, and is no report" in error
    assert (tmp_path / "report.html").read_text() == "<html>mine</html>"


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="needs matplotlib: pip install"):
        check_report(tmp_path / "report.html")
