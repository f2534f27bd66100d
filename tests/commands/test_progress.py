"""Progress: bars with the time left on a terminal, lines in a file, none of them with --json; what Ctrl-C says."""

from __future__ import annotations

import io
import sys

import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')

from rich.console import Console

from explainfix_ext._support.progress import counted
from explainfix_ext.commands import progress
from explainfix_ext.training import prune_checkpoint, runs
from explainfix_ext.training.config import TrainConfig

RECORD = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.25, "val_accuracy": 0.75, "val_auroc/a": 1.0, "train_seconds": 2}
LINE = "dct2  epoch 1/1  loss 0.5000  val loss 0.2500  accuracy 0.7500  2.0 s"


def shown(monkeypatch, terminal: bool, as_json: bool = False) -> str:
    """What stderr gets of a run of two steps, with a stage before it in which a library prints and warns."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80, highlight=False)
    monkeypatch.setattr(progress, "console", lambda stderr: console)
    monkeypatch.setattr(sys, "stderr", file)
    with progress.working(as_json, "") as bar:
        bar.stage("scoring filters", 2)
        assert list(counted([1, 2], "reading images")) == [1, 2]
        print("from a library")
        bar.progress.refresh()
        bar.start(TrainConfig(init="dct2", epochs=1), steps=2, epoch=0)
        bar.step()
        bar.progress.refresh()
        bar.epoch(RECORD)
        bar.step()
    assert list(counted([1], "nobody looks")) == [1]
    return file.getvalue()


def test_a_terminal_gets_bars_with_the_time_left(monkeypatch):
    out = shown(monkeypatch, terminal=True)
    for part in ("scoring filters", "0/2, -:-- left", "1/2, ", "2/2, took 0:0", LINE, "from a library\n"):
        assert part in out
    last = out[out.rindex("dct2 ") :]
    assert "scoring" not in last  # a stage that is over is gone
    assert LINE in shown(monkeypatch, terminal=True, as_json=True)


def test_a_file_gets_lines_and_with_json_nothing(monkeypatch):
    assert shown(monkeypatch, terminal=False) == f"from a library\n{LINE}\n"
    assert shown(monkeypatch, terminal=False, as_json=True) == "from a library\n"


def test_a_single_step_shows_how_long_it_takes_already(monkeypatch):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, highlight=False)
    monkeypatch.setattr(progress, "console", lambda stderr: console)
    with progress.working(False, "") as bar:
        bar.stage("reading mnist5k", 1)
        bar.progress.refresh()
    assert "0:00" in file.getvalue()
    assert "left" not in file.getvalue()


@pytest.mark.parametrize(
    ("line", "module", "name", "next_"),
    [
        ("train --out 'a b'", runs, "train_networks", "to go on: explainfix train --out 'a b' --json --resume"),
        ("prune x --out o", prune_checkpoint, "prune_checkpoint", "to start again, take another --out than o"),
    ],
)
def test_interrupted_json_is_empty_and_says_what_next(run, monkeypatch, line, module, name, next_):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, name, interrupted)
    assert run(f"{line} --json") == (130, "", f"interrupted; {next_}\n")
