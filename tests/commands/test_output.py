"""What commands write: errors that can be known beforehand come before the work, others lose nothing."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("torchmetrics", reason='needs the extra "demo"')

from support.dropout_run import DropoutNet, stripes

from explainfix_ext import cli
from explainfix_ext._support.files import locked
from explainfix_ext.commands.benchmarks import peaks
from explainfix_ext.commands.webpage import run as webpage_run
from explainfix_ext.training import models, trainer
from explainfix_ext.training.checkpoint import load_checkpoint

COMMANDS = {
    "train": "train --model tiny --data DATA --init learned --epochs 2 --device cpu --out OUT",
    "prune": "prune no.pt --out OUT",
    "bench": "bench --out OUT/b.json",
    "explain": "explain tiny --size 1x12x12 --classes 3 --device cpu --html OUT/h.html",
}


@pytest.fixture
def command(run, monkeypatch, tmp_path):
    """Runs a command with a folder as OUT -> (exit code, stdout, the lines on stderr)."""
    monkeypatch.setitem(models.PRESETS, "tiny", DropoutNet)
    data = stripes(tmp_path / "data.npz")

    def call(name: str, out: object = "o", more: str = "") -> tuple[int, str, list[str]]:
        line = COMMANDS[name].replace("DATA", data).replace("OUT", f"'{out}'")
        code, shown, error = run(f"{line} {more}")
        return code, shown, error.splitlines()

    return call


@pytest.fixture
def no_work(monkeypatch):
    """The work of every command fails the test."""
    for module, name in (
        (trainer.Trainer, "fit"),
        (peaks, "measure_peaks"),
        (webpage_run, "explain"),
    ):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("worked"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_is_told_before_the_work(command, no_work, tmp_path, monkeypatch, name):
    (tmp_path / "file").write_bytes(b"x")
    code, _, error = command(name, "file/inner")
    assert code == 2
    assert error[0].startswith("explainfix: file/inner/")
    assert error[0].endswith(f"must be in a folder, {tmp_path}/file is a file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    code, _, error = command(name)
    assert code == 2
    assert len(error) == 1
    assert f"cannot be written: no permission to write into {tmp_path}" in error[0]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_names_that_are_not_utf8_are_told_before_the_work(command, no_work, tmp_path, name):
    code, shown, error = command(name, os.fsdecode(b"o\xff"))
    assert (code, shown) == (2, "")
    (told,) = error
    assert told.startswith("explainfix: an argument must be text that can be written as UTF-8, got 'o\\udcff")
    assert sorted(os.listdir(tmp_path)) == ["data.npz"]


@pytest.mark.parametrize("name", ["train", "prune", "bench"])
def test_a_missing_matplotlib_is_told_before_the_work(command, no_work, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, error = command(name)
    assert code == 2
    assert "needs matplotlib: pip install" in error[0]
    assert not (tmp_path / "o").exists()


def test_files_in_the_way_are_told_before_the_work(command, no_work, tmp_path):
    for file in ("o/results.json", "o/learned/model.pt", "o/curves.png"):
        (tmp_path / file).mkdir(parents=True)
        code, _, error = command("train")
        assert code == 2
        assert f"{file} is a folder: it is in the way of a file to write" in error[0]
        (tmp_path / file).rmdir()


def test_a_second_network_that_cannot_be_made_is_told_before_the_first_is_trained(command, no_work, tmp_path):
    code, _, error = command("train", more="--init guided_steer --steering no.safetensors")
    assert code == 2
    assert "no.safetensors" in error[-1]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["train", "prune"])
def test_a_folder_that_another_process_writes_into_is_refused(command, no_work, tmp_path, name):
    with locked(tmp_path / "o"):
        code, _, error = command(name)
        assert code == 2
        assert error == ["explainfix: another process writes into o: wait for it, or choose another --out"]
        assert os.listdir(tmp_path / "o") == []


def test_a_full_disk_is_one_line_and_loses_no_epoch(command, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 8:  # file and folder, of: an empty log, a checkpoint, its log, a checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    code, shown, error = command("train")
    assert (code, shown) == (1, "")
    assert error[-1] == "explainfix: [Errno 28] No space left on device: 'o/learned/log.jsonl'"
    assert sorted(os.listdir(tmp_path / "o" / "learned")) == ["checkpoint.pt", "log.jsonl"]
    assert load_checkpoint(Path("o/learned/checkpoint.pt"))["epoch"] == 2
    monkeypatch.setattr(os, "fsync", sync)
    assert command("train", more="--resume")[0] == 0
    assert len(Path("o/learned/log.jsonl").read_text().splitlines()) == 2


def test_a_terminal_without_a_letter_shows_the_rest(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli._run(lambda **options: print("curves: bücher/curves.png"), ["inits"]) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"curves: b\\xfccher/curves.png\n"
