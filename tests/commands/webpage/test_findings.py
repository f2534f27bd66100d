"""The sentences of a report: each follows from the numbers, also where a network or its data is unusual."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from support.page import check_structure, explained_by_name
from support.tiny_run import images

from explainfix_ext.commands.webpage.explained import Explained, Pruned
from explainfix_ext.commands.webpage.findings import findings
from explainfix_ext.commands.webpage.page import report_page
from explainfix_ext.commands.webpage.run import AMOUNTS, explain
from explainfix_ext.commands.webpage.subject import ExplainConfig

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")


def test_findings_follow_the_numbers():
    low = explain(ExplainConfig(model="tiny", init="ghaar4_s1", size="1x12x12", classes=3, device="cpu"), "")
    assert findings(low)[0].startswith("In 2 of 2 spatial layers low frequencies (below half of the highest) have more")
    assert "of the energy; flat: 33%)" in findings(low)[1]
    flat = explain(ExplainConfig(model="tiny", init="dct2", size="1x12x12", classes=3, device="cpu"), "")
    shares = flat.spectra["filters"].low
    assert findings(flat)[0].startswith(f"In {sum(share > 1 / 3 + 1e-6 for share in shares.values())} of 2 spatial")
    ones = explain(ExplainConfig(model="tiny", init="identity", size="1x12x12", classes=3, device="cpu"), "")
    high = ones.spectra["filters"].low  # an impulse: 3 functions of 9 are low, and have less than a third of sum |c|
    assert findings(ones)[0].startswith(f"In {sum(share > 1 / 3 + 1e-6 for share in high.values())} of 2 spatial")
    said = " ".join(findings(flat))
    assert "In training" not in said
    assert "AUROC" not in said
    shown = next(pruned.report for pruned in flat.pruned if pruned.amount == 0.9)
    before, after = shown.parameters
    assert f"Without 90% of the spatial filters, {after / before:.0%} of the parameters" in said


def test_pruning_that_cuts_a_network_through_is_told():
    found = explain(ExplainConfig(model="efficientnet", init="dct2", size="1x32x32", classes=3, device="cpu"), "")
    said = findings(found)
    assert "Without 80% of the spatial filters no way is left through the network: the others go, too." in said
    assert any(line.startswith("Without 50% of the spatial filters,") for line in said)
    rows = {row[0]: row[1:] for row in check_structure(report_page(found)).tables["pruned"]}
    assert rows["99%"][0] == "100%"


def with_scores(found: Explained, whole: float, scores: dict[float, float | None]) -> Explained:
    """As if pruning had given these AUROCs; None: it failed."""
    report = found.pruned[0].report
    pruned = [
        Pruned(amount, reason="no") if score is None else Pruned(amount, report, {"auroc": score})
        for amount, score in scores.items()
    ]
    return dataclasses.replace(found, test={"auroc": whole}, pruned=pruned)


def test_amounts_that_were_zero_before_are_named_and_not_counted():
    found = explained_by_name(init="dct2@0.1")
    zero = [1 - module.bank.density for module in found.subject.network.modules() if hasattr(module, "bank")]
    filters = [12, 144]
    assert found.zero_before == pytest.approx(np.average(zero, weights=filters))
    assert found.as_dict()["pruning"]["zero_before"] == found.zero_before
    assert [pruned.amount for pruned in found.pruned_anew] == [0.9, 0.95, 0.99]  # the stem's 12 filters are whole
    said = " ".join(findings(found))
    assert (
        f"{found.zero_before:.1%} of the spatial filters are zero already, before any pruning, so pruning 50% or "
        f"80% of them changes next to nothing." in said
    )
    assert "Without 95% of the spatial filters, " in said
    assert "Without 90%" not in said
    text = report_page(found)
    page = check_structure(text)
    assert f"{found.zero_before:.1%} were zero before" in page.text["pruning"]
    assert page.tables["pruned"][1][:2] == ["0%", "90%"]
    assert "multiply-adds left after pruning 90%" not in text


def test_networks_without_zeros_say_nothing_of_them(binary):
    assert binary.zero_before == 0
    assert "already, before" not in " ".join(findings(binary))
    assert check_structure(report_page(binary)).tables["pruned"][1][:2] == ["0%", "0%"]


@pytest.mark.parametrize(
    ("whole", "scores", "said"),
    [
        (0.9, (0.9, 0.9, 0.7, 0.9, 0.5), "Up to 80% of the spatial filters can go before the test AUROC (0.900) falls"),
        (0.9, (0.8, 0.9, 0.9, 0.9, 0.9), "pruning 50% of the spatial filters already costs more than one point of"),
        (0.9, (0.9,) * 5, "Even without 99% of the spatial filters the test AUROC (0.900 with all) has not fallen by"),
        (0.9, (0.9, None, 0.9, 0.9, 0.9), "Even without 50% of the spatial filters"),
        (0.9, (0.9, 0.9, None, 0.9, 0.1), "Even without 80% of the spatial filters"),
        (0.9, (None, 0.9, 0.9, 0.9, 0.9), ""),
        (0.9, (0.9, float("nan"), 0.9, 0.9, 0.9), "Even without 50% of the spatial filters"),
        (float("nan"), (float("nan"),) * 5, ""),
    ],
)
def test_what_pruning_costs_is_said_up_to_the_first_hole(binary, whole, scores, said):
    lines = findings(with_scores(binary, whole, dict(zip(AMOUNTS, scores, strict=True))))
    about = [line for line in lines if "AUROC" in line]
    assert len(about) == bool(said)
    assert all(said in line for line in about)


def test_a_score_that_is_not_defined_is_called_so(run, tmp_path):
    arrays = dict(np.load(images(tmp_path / "one.npz", classes=2)))
    for name in ("train", "val", "test"):
        labels = arrays[f"{name}_labels"]
        arrays[f"{name}_labels"] = np.concatenate([labels, 1 - labels] if name != "test" else [0 * labels] * 2, axis=1)
    np.savez(tmp_path / "many.npz", **arrays)
    code, out, error = run("explain tiny --data many.npz --batches 1 --device cpu")
    assert code == 0, error
    assert "undefined -> undefined" in out
    text = (tmp_path / "report.html").read_text()
    assert "AUROC undefined" in text
    assert "nan" not in check_structure(text).text["pruning"]
