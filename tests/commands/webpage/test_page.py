"""The page: before and after training, captions, pictures that fail, and names that look like markup."""

from __future__ import annotations

import dataclasses
import shlex
import shutil

import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from support.page import WEIRD, check_structure
from support.tiny_run import images

from explainfix_ext.commands.webpage import html
from explainfix_ext.commands.webpage import pictures as explain_pictures
from explainfix_ext.commands.webpage.page import report_page
from explainfix_ext.commands.webpage.run import explain
from explainfix_ext.commands.webpage.subject import ExplainConfig

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")


def test_before_and_after_training_stand_side_by_side(checkpoints):
    learned, fixed = (
        report_page(explain(ExplainConfig(model=str(checkpoints[i]), batches=2, device="cpu"), "")) for i in checkpoints
    )
    assert learned.count(">before training<") == learned.count(">after training<") == 4  # e_d and e_0, twice
    assert fixed.count(">before training<") == 2
    assert "Fixed filters do not change in training" in fixed
    assert "All spatial filters are fixed" in fixed


@pytest.mark.parametrize("task", ["binary", "segmentation", "multiclass"])
def test_caption_says_which_targets_add_nothing(binary, task):
    data = dataclasses.replace(binary.subject.images, task=task)
    found = dataclasses.replace(binary, test=None, subject=dataclasses.replace(binary.subject, images=data))
    text = check_structure(report_page(dataclasses.replace(found, pruned=[], missing={"pruning": "no"}))).text[
        "spectra"
    ]
    assert ("images with target 0 add nothing" in text) == (task == "binary")
    assert ("pixels with target 0 add nothing" in text) == (task == "segmentation")
    assert ("the true class's logit" in text) == (task == "multiclass")


def test_a_picture_that_fails_is_named_and_the_rest_is_there(run, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("no <ink>\nat all")

    monkeypatch.setattr(explain_pictures, "plot_filters", fail)
    code, out, error = run("explain tiny --size 1x12x12 --classes 3 --device cpu")
    assert code == 0, error
    page = check_structure((tmp_path / "report.html").read_text())
    assert page.text["filters"].count("No picture (Filters of 0): no <ink>.") == 1
    assert "e_d, the energy" in page.text["spectra"]
    assert "not in the report: picture filters-0: no <ink>" in out


def test_names_are_escaped(run_explain, tmp_path):
    assert shutil.copy(images(tmp_path / "some.npz"), tmp_path / f"{WEIRD}.npz")
    code, _, error = run_explain(f'''"{WEIRD}" --data "{WEIRD}.npz" --batches 1 --device cpu''')
    assert code == 0, error
    text = (tmp_path / "report.html").read_text()
    page = check_structure(text)
    assert WEIRD in page.text["network"]
    assert shlex.quote(WEIRD) in page.text["origin"]
    assert "<b>" not in text


def test_builder_escapes_text_and_not_markup():
    assert html.element("p", "<b>", title='"&') == '<p title="&quot;&amp;">&lt;b&gt;</p>'
    assert html.element("p", html.element("b", 1)) == "<p><b>1</b></p>"
    assert html.element("meta", charset="utf-8", class_=None) == '<meta charset="utf-8">'
    assert html.items(["<", "x"]) == "<ul><li>&lt;</li><li>x</li></ul>"
    assert "--share:1.0000" in html.bar("2", 2.0)
    table = html.table("t", "<c>", ("a", "b"), [("x", "1"), ("sum", "1")], foot=1)
    assert '<th scope="row">sum</th>' in table.partition("<tfoot>")[2]
    assert "&lt;c&gt;" in table
