"""`explainfix demo`: four networks from one configuration, measured, shown with what is no gain, and explained."""

from __future__ import annotations

import copy
import json
import math
import os
import re

import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from support.dropout_run import DropoutNet, stripes

from explainfix_ext.commands import gains
from explainfix_ext.commands.gains import compare
from explainfix_ext.commands.gains_shown import COSTS, FIXED, LEARNED, PRUNED, RECOMPUTE, gains_lines, plot_gains
from explainfix_ext.training import models
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.prune_checkpoint import PruneConfig


@pytest.fixture(autouse=True)
def _idle(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(what `compare` returned, the folder that it wrote)."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", DropoutNet)
        patch.setattr(gains, "ROUNDS", 2)
        base = TrainConfig(model="tiny", data=stripes(folder / "data.npz"), epochs=2, pointwise=True)
        prune = PruneConfig(amount=0.5, batches=1, epochs=1, granularity="filter")
        results = compare(base, prune, folder / "out", device="cpu")
    return results, folder / "out"


def test_four_networks_are_measured(found):
    results, folder = found
    networks = results["networks"]
    assert list(networks) == [LEARNED, FIXED, RECOMPUTE, PRUNED]
    assert [len(run["history"]) for run in networks.values()] == [2, 2, 2, 1]
    for run in networks.values():
        share = run["accuracy"]
        error = math.sqrt(share * (1 - share) / results["data"]["test"])
        assert run["accuracy_standard_error"] == pytest.approx(error)
        assert all(run[key] > 0 for key, _ in COSTS.values())
    assert networks[FIXED]["learned_parameters"] < networks[LEARNED]["learned_parameters"]
    assert networks[RECOMPUTE]["peak_bytes"] < networks[FIXED]["peak_bytes"]
    for name, way in ((LEARNED, "learned"), (FIXED, "auto+pointwise"), (PRUNED, "pruned")):
        assert networks[name]["checkpoint_bytes"] == (folder / way / "model.pt").stat().st_size
    pruned = json.loads((folder / "pruned" / "results.json").read_text())
    assert networks[PRUNED]["accuracy"] == pruned["test"]["fine_tuned"]["accuracy"]
    assert results["prune"]["granularity"] == "filter"
    assert results == json.loads((folder / "demo.json").read_text())
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "<title>tiny, auto+pointwise: ExplainFix report" in (folder / "report.html").read_text()


def test_what_is_no_gain_is_said(found, tmp_path):
    results = copy.deepcopy(found[0])
    for name, run in results["networks"].items():
        run |= {key: 10 if name == LEARNED else 5 for key, _ in COSTS.values()}
        run |= {"accuracy": 0.9, "accuracy_standard_error": 0.01}
    assert len([*gains_lines(results)]) == 2
    assert "by filter, then 1 more epoch than the others" in next(gains_lines(results))
    results["networks"][FIXED]["peak_bytes"] = 10
    results["networks"][PRUNED] |= {"step_seconds": 9.6, "accuracy": 0.85}
    assert [*gains_lines(results)][2:] == [
        "no gain in training step: fixed, pruned",
        "no gain in step's memory: fixed",
        "less accurate than learned, by 5.0 points: fixed, pruned",
    ]
    plot_gains(results, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_table_and_files_are_printed(run, monkeypatch, found):
    monkeypatch.setattr(gains, "compare", lambda *arguments, **options: found[0])
    monkeypatch.setenv("COLUMNS", "80")
    code, out, error = run("demo")
    assert (code, error) == (0, "")
    assert re.search(r"test accuracy, % +\d+.\d ± \d", out)
    assert re.search(r"parameters, 1000s +[\d.]+ +[\d.]+ \(0.\d\d\)", out)
    for file in ("demo.png", "demo.json", "report.html"):
        assert f"explainfix-demo/{file}" in out
    code, out, error = run("demo --json")
    assert (code, json.loads(out), error) == (0, found[0], "")


def test_a_busy_machine_is_told(run, monkeypatch, found):
    monkeypatch.setattr(gains, "compare", lambda *arguments, **options: found[0])
    monkeypatch.setattr(os, "getloadavg", lambda: (os.cpu_count() + 0.5, 0.0, 0.0))
    with pytest.warns(UserWarning, match="the machine is busy: times in the table will be off"):
        assert run("demo")[0] == 0


def test_a_new_folder_is_taken_each_time(run, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(gains, "compare", lambda base, prune, out, **options: seen.append((out.name, base)) or 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            run("demo --quick --seed 3")
        (tmp_path / "explainfix-demo").mkdir(exist_ok=True)
    assert [name for name, _ in seen] == ["explainfix-demo", "explainfix-demo-2"]
    base = TrainConfig(model="basicblock@4", pointwise=True, seed=3, epochs=2, limit=768, batch_size=32, data="mnist5k")
    assert [config for _, config in seen] == [base, base]


def test_interruption_is_one_line(run, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(gains, "compare", interrupted)
    assert run("demo --out o") == (130, "", "interrupted; to start again, take another --out than o\n")


def test_bad_input_changes_nothing(run, monkeypatch, tmp_path):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    code, _, error = run("demo --out o")
    assert (code, error) == (2, "explainfix: rank 0: demo runs in one process: start it without torchrun\n")
    monkeypatch.delenv("WORLD_SIZE")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "report.html").write_text("mine")
    code, _, error = run("demo --out o")
    assert code == 2
    assert "o/report.html is there, and is no report" in error
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["report.html"]


@pytest.mark.slow
def test_the_demo_shows_gains(run):
    pytest.importorskip("mlxtend")
    code, out, error = run("demo --quick --json --device cpu")
    assert code == 0, error
    networks = json.loads(out)["networks"]
    assert torch.tensor([run["accuracy"] for run in networks.values()]).min() > 0.8
    over = {
        name: {key: run[key] / networks[LEARNED][key] for key, _ in COSTS.values()} for name, run in networks.items()
    }
    assert over[FIXED]["learned_parameters"] < 0.2
    assert over[FIXED]["checkpoint_bytes"] < 0.2
    assert over[RECOMPUTE]["peak_bytes"] < 0.5
    assert over[PRUNED]["learned_parameters"] < 0.15
