"""The examples run as a user runs them, say what their docstrings promise, and need public names only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

import explainfix_ext as efx

EXAMPLES = ROOT / "examples"
SCRIPTS, NOTEBOOKS = sorted(EXAMPLES.glob("*.py")), sorted(EXAMPLES.glob("*.ipynb"))
PUBLIC = {"explainfix_ext", "explainfix_ext.explain_plots", "explainfix_ext.registry"}
DATA = ("explainfix_ext.training.data", "load_dataset")  # for real images; a user has others
MOST_BYTES = 300_000


def run(script: Path, folder: Path) -> str:
    """What a script prints; it must end well, and get no warning of ours."""
    pytest.importorskip("timm", reason='needs the extra "demo"')
    pytest.importorskip("mlxtend", reason='needs the extra "demo"')
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{script.name}:" not in done.stderr  # where a warning says that it comes from
    return done.stdout


def percents(text: str, of: str = "of test digits right") -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(rf"^([\w-]+):? .*?([\d.]+)% {of}", text, flags=re.M)}


@pytest.mark.slow
def test_convert(tmp_path: Path) -> None:
    text = run(EXAMPLES / "convert.py", tmp_path)
    assert "17 spatial convolutions fixed, 0 left" in text
    right = percents(text)
    assert right.keys() == {"learned", "fixed"}
    assert min(right.values()) > 75  # after one epoch; chance is 10
    learned, fixed = (
        [float(n.replace(",", "")) for n in re.findall(p, text)] for p in (r"([\d,]+) learned numbers", r"([\d.]+) MB")
    )
    assert learned[0] / learned[1] == pytest.approx(7, abs=0.5)
    assert fixed[0] / fixed[1] == pytest.approx(7, abs=0.5)


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    lines = [line.split() for line in run(EXAMPLES / "memory.py", tmp_path).splitlines()[1:]]
    kept, peak, error = ({mode: float(row[i]) for mode, *row in lines} for i in range(3))
    assert list(kept) == ["learned", "off", "exact", "recompute", "int8"]
    assert kept["exact"] < 0.3 * kept["learned"]
    assert kept["int8"] < kept["recompute"] < 0.1 * kept["learned"]
    assert peak["recompute"] < 0.3 * peak["learned"]
    assert max(error["exact"], error["recompute"]) < 2 * error["off"] + 1e-6, "the gradients are those of torch"


@pytest.mark.slow
def test_prune(tmp_path: Path) -> None:
    text = run(EXAMPLES / "prune.py", tmp_path)
    assert re.search(
        r"^9\d\.\d% of the spatial filters pruned; .*\nverified: equals the masked model", text, flags=re.M
    )
    right = percents(text)
    assert right["pruned"] < right["trained"]
    assert right["fine-tuned"] > 85
    assert right["loaded"] == right["fine-tuned"]
    sizes = dict(re.findall(r"^([\w-]+) .*, ([\d,]+) parameters$", text, flags=re.M))
    assert sizes["trained"] == "373,370"
    assert sizes["loaded"] == sizes["pruned"]
    assert len(sizes["pruned"]) < len(sizes["trained"])


@pytest.mark.slow
def test_explain(tmp_path: Path) -> None:
    text = run(EXAMPLES / "explain.py", tmp_path)
    shares = {
        name: (float(a), float(b)) for name, a, b in re.findall(r"^(\S+) +([\d.]+)% -> ([\d.]+)%$", text, flags=re.M)
    }
    assert len(shares) == 10
    assert all(random == pytest.approx(33.3, abs=4) for random, _ in shares.values()), "random filters are flat"
    assert sum(trained > random for random, trained in shares.values()) > 5, "training prefers low frequencies"
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_gradient_free(tmp_path: Path) -> None:
    right = percents(run(EXAMPLES / "gradient_free.py", tmp_path))
    assert right.keys() == {"learned", "fixed", "saab"}
    assert min(right.values()) > 94


@pytest.mark.slow
def test_own_init(tmp_path: Path) -> None:
    text = run(EXAMPLES / "own_init.py", tmp_path)
    right = percents(text)
    assert right.keys() == {"dct2", "gabor"}
    assert min(right.values()) > 75
    assert (tmp_path / "filters.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_csg(tmp_path: Path) -> None:
    text = run(EXAMPLES / "csg.py", tmp_path)
    whole, one = percents(text), percents(text, "with one input a class")
    assert whole.keys() == one.keys() == {"plain", "gated"}
    assert min(whole.values()) > 95
    assert one["gated"] > one["plain"]
    mis, chance = ([float(n) for n in re.findall(rf"{word} (0\.\d+)", text)] for word in ("MIS", "chance"))
    assert mis[1] > mis[0] > 5 * max(chance)


@pytest.mark.slow
def test_superposition(tmp_path: Path) -> None:
    lines = run(EXAMPLES / "superposition.py", tmp_path).splitlines()
    found = {line[:28].strip(): [float(n) for n in line[28:].split()] for line in lines}
    assert found["orthogonal"] == [1] * 3
    assert found["antipodal pair"] == [0.5] * 2
    assert found["pentagon"] == [0.4] * 5
    assert found["tetrahedron"] == [0.75] * 4
    often, rare = (found[f"toy, features there in {share}"] for share in ("100%", "5%"))
    assert often == pytest.approx([1, 1, 0, 0, 0], abs=0.1), "the two that weigh most"
    assert rare == pytest.approx([0.4] * 5, abs=0.05), "a pentagon"
    assert all(0 < share <= 1 for name, shares in found.items() if name.startswith("classes") for share in shares)


@pytest.mark.slow
def test_weight_spectra(tmp_path: Path) -> None:
    pytest.importorskip("weightwatcher", reason='needs the extra "test"')
    lines = run(EXAMPLES / "weight_spectra.py", tmp_path).partition("alpha of layer")[2].splitlines()[1:]
    rows = {name: ([float(n) for n in numbers], kind) for name, *numbers, kind in map(str.split, lines)}
    assert len(rows) == 16
    for (_, learned, before, after), kind in rows.values():
        assert (before == after) == (kind == "FixedConv2d"), "training leaves fixed filters as they are"
        assert 1 < learned < 8
    moved = [abs(random - trained) > 0.5 for (random, trained, *_), _ in rows.values()]
    assert sum(moved) > 10


@pytest.mark.slow
def test_int8(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason='needs the extra "test"')
    pytest.importorskip("onnxscript", reason='needs the extra "test"')
    text = run(EXAMPLES / "int8.py", tmp_path)
    right = percents(text)
    assert right.keys() == {"float32", "int8"}
    assert right["float32"] > 75
    assert right["int8"] > right["float32"] - 3
    sizes = {name: float(size.replace(",", "")) for name, size in re.findall(r"^(\S+) .*?([\d,]+) kB$", text, re.M)}
    assert sizes["int8"] < 0.35 * sizes["float32"]
    assert sizes["fixed.pt"] < sizes["int8"], "a recipe is smaller than any filters"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run_and_say_what_is_written_in_them(path: Path, tmp_path: Path) -> None:
    """All but the numbers, which another processor may round otherwise."""
    pytest.importorskip("mlxtend", reason='needs the extra "demo"')
    again, written = notebooks().run(path, tmp_path), notebooks().read(path)
    assert [shown(cell) for cell in again.cells] == [shown(cell) for cell in written.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_hold_nothing_of_the_run(path: Path) -> None:
    """No metadata, times and warnings, so that a difference in git is one that somebody made."""
    notebook = notebooks().read(path)
    assert path.read_text() == notebooks().text_of(notebook)
    assert path.stat().st_size < MOST_BYTES
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.get("name") for output in outputs} <= {"stdout", None}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


@pytest.mark.parametrize("path", [*SCRIPTS, *NOTEBOOKS], ids=lambda path: path.name)
def test_examples_need_public_names_only(path: Path) -> None:
    tree = ast.parse(path.read_text() if path.suffix == ".py" else notebooks().code_of(notebooks().read(path)))
    assert private_names(tree) == []
    if path.suffix == ".py":
        assert len(path.read_text().splitlines()) < 80
        assert "\n\nYou will see " in (ast.get_docstring(tree) or "")


def test_scripts_and_notebooks() -> None:
    scripts = ["convert", "csg", "explain", "gradient_free", "int8", "memory", "own_init", "prune", "superposition"]
    scripts += ["weight_spectra"]
    assert [path.stem for path in SCRIPTS] == scripts
    assert [path.stem for path in NOTEBOOKS] == ["explain_and_prune", "start"]


def test_these_tests_can_fail(tmp_path: Path) -> None:
    tree = ast.parse("import explainfix_ext as efx\nfrom explainfix_ext.nn.swap import revert\nefx.no(efx.convert)")
    assert private_names(tree) == ["explainfix_ext.nn.swap.revert", "efx.no"]
    bad = tmp_path / "bad.py"
    bad.write_text("print('so far')\nraise SystemExit('no further')")
    with pytest.raises(AssertionError, match="no further"):
        run(bad, tmp_path)
    bad.write_text("import warnings\nwarnings.warn('little is left')")
    with pytest.raises(AssertionError, match="little is left"):
        run(bad, tmp_path)


def private_names(tree: ast.Module) -> list[str]:
    """What a program takes of the package that the package does not offer."""
    imports = [(n.module, a.name) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    ours = [(module, name) for module, name in imports if module and module.startswith("explainfix_ext")]
    found = [f"{module}.{name}" for module, name in ours if module not in PUBLIC and (module, name) != DATA]
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    return found + [f"efx.{n.attr}" for n in uses if n.value.id == "efx" and n.attr not in efx.__all__]  # type: ignore


def notebooks() -> Any:
    return pytest.importorskip("support.notebooks", reason='needs nbclient (extra "test")', exc_type=ImportError)


def shown(cell: Any) -> list[str]:
    """The texts under a cell with N for every number, and the word that stands for a picture."""
    outputs = cell.get("outputs", [])
    return [re.sub(r"[\d.,]*\d(e-\d+)?", "N", o.get("text") or " ".join(sorted(o.get("data", {})))) for o in outputs]
