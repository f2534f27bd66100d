"""Help: it fits a screen, its options stand in groups with their defaults, and it comes without torch, as TAB does."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')

COMMANDS = ("train", "demo", "prune", "explain", "memory", "export", "bench", "status", "inits")
WITHOUT_TORCH = """
import atexit, sys
import explainfix_start
atexit.register(lambda: print(sorted({"torch", "numpy", "rich"} & set(sys.modules)), file=sys.stderr))
explainfix_start.main()
"""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(f"{command} --help")
    assert code == 0
    assert len(out.splitlines()) < 40
    assert max(map(len, out.splitlines())) <= 80
    if command:
        assert re.search(rf"Example: explainfix {command}", out)


def test_options_stand_in_groups_with_their_defaults(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = run("train --help")[1]
    groups = re.findall(r"^([A-Z][a-z ]+):$", out, re.MULTILINE)
    assert groups == ["What to train", "How", "Fixed filters", "Speed and memory", "Output"]
    assert re.search(r"--epochs N +Passes over the training images. +\[default: 10\]", out)
    assert re.search(r"What to prune:\n +CHECKPOINT +OUT/NETWORK/checkpoint.pt", run("prune --help")[1])


def start(*words: str, **environment: str) -> tuple[str, str]:
    """Starts the program as its entry point does -> (stdout, the modules that took long to import)."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    return done.stdout, done.stderr


@pytest.mark.parametrize("words", [(), ("train", "--help")])
def test_help_comes_without_torch(words):
    out, modules = start(*words)
    assert "Usage: explainfix" in out
    assert modules == "[]\n"


@pytest.mark.parametrize(
    ("line", "found"),
    [("tr", ["train"]), ("prune x.pt --am", ["--amount"])],
)
def test_tab_completes_without_torch(line, found):
    words = ["explainfix", *line.split(" ")]
    out, modules = start(
        _EXPLAINFIX_COMPLETE="complete_bash", COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1)
    )
    assert out.split() == found
    assert modules == "[]\n"


def test_other_commands_start_with_the_whole_package():
    out, modules = start("status")
    assert "torch" in out
    assert "torch" in modules


def test_version_and_forms_of_data_need_nothing_else(run):
    assert re.fullmatch(r"explainfix_ext \d+\.\d+\.\d+\S*\n", run("--version")[1])
    for command in ("train", "prune", "explain"):
        code, out, error = run(f"{command} --data list")
        assert (code, error) == (0, "")
        assert "folder:photos" in out
