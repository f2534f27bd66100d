"""Data sets of the UCR archive: good files, broken files, and the names that installed libraries have."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from explainfix_ext.training.data import load_dataset

HEAD = "#A comment\n@problemName Waves\n@univariate true\n@classLabel true up down\n@data\n"
TRAIN = HEAD + "".join(f"{n},{n + 1},{2 * n}:{'up' if n % 2 else 'down'}\n" for n in range(30))
TEST = HEAD + "\n1,2,3.5:up\n-1e-1,2,3:down\n"


def write(folder: Path, train: str = TRAIN, test: str = TEST, name: str = "Waves") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_TRAIN.ts").write_text(train)
    (folder / f"{name}_TEST.ts").write_text(test)
    return folder


@pytest.mark.parametrize("inside", [False, True])
def test_reads_series_with_their_classes(tmp_path, inside: bool) -> None:
    write(tmp_path / "Waves" if inside else tmp_path)
    data = load_dataset(f"ucr:{tmp_path}/Waves")
    assert (data.task, data.classes, data.channels, data.outputs) == ("multiclass", 2, 1, 2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [26, 4, 2]
    x, y = data.test.tensors
    assert x.shape == (2, 1, 3)
    assert y.tolist() == [1, 0]  # names in order: down, up
    raw = x * data.std[0] + data.mean[0]
    torch.testing.assert_close(raw[:, 0], torch.tensor([[1, 2, 3.5], [-0.1, 2, 3]]))
    train = data.train.tensors[0]
    assert abs(float(train.mean())) < 1e-6
    assert abs(float(train.std()) - 1) < 1e-6


def test_several_channels(tmp_path) -> None:
    rows = HEAD + "".join(f"{n},1:{n},{-n}:{'up' if n % 2 else 'down'}\n" for n in range(20))
    write(tmp_path, rows, rows)
    data = load_dataset(f"ucr:{tmp_path}/Waves")
    assert data.channels == 2
    assert data.train.tensors[0].shape[1:] == (2, 2)
    assert len(data.mean) == len(data.std) == 2


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (TRAIN.replace("@data", ""), TEST, "has no line @data"),
        (HEAD, TEST, "has no series"),
        (TRAIN, HEAD + "1,2:up\n", r"series of \[channels, length\] = \[1, 2\], the training series are \[1, 3\]"),
        (TRAIN, HEAD + "1,2,3:up\n1,2:up\n", r"Waves_TEST.ts, line 7: series must be whole and of one length"),
        (TRAIN, HEAD + "1,?,3:up\n", "line 6: .*: expected numbers"),
        (TRAIN, HEAD + "1,NaN,3:up\n", "line 6: series must be whole and of one length, got a value missing"),
        (TRAIN, HEAD + "1,2:1,2,3:up\n", "line 6"),
        (TRAIN, HEAD + "up\n", "line 6"),
        (TRAIN.replace("down\n", "up\n"), TEST.replace(":down", ":up"), "has one class, 'up'"),
    ],
)
def test_broken_files_are_told(tmp_path, train: str, test: str, message: str) -> None:
    write(tmp_path, train, test)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"ucr:{tmp_path}/Waves")


def test_missing_files_and_options_are_told(tmp_path) -> None:
    with pytest.raises(
        FileNotFoundError, match="Waves_TRAIN.ts not found in .*expected NAME_TRAIN.ts and NAME_TEST.ts"
    ):
        load_dataset(f"ucr:{tmp_path}/Waves")
    with pytest.raises(FileNotFoundError, match="or a name that sktime or aeon has"):
        load_dataset("ucr:NoSuchSet")
    write(tmp_path)
    with pytest.raises(ValueError, match=r"\?size= is for images, and ucr:.* has signals"):
        load_dataset(f"ucr:{tmp_path}/Waves?size=64")
    (tmp_path / "Waves_TEST.ts").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="Waves_TEST.ts cannot be read"):
        load_dataset(f"ucr:{tmp_path}/Waves")


def test_a_name_is_looked_up_in_an_installed_library(tmp_path, monkeypatch) -> None:
    """The library is found, and not imported: aeon's import compiles for seconds."""
    write(tmp_path / "aeon" / "datasets" / "data" / "Waves")
    (tmp_path / "aeon" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aeon", raising=False)
    assert load_dataset("ucr:Waves").classes == 2
    assert "aeon" not in sys.modules


@pytest.mark.skipif(not any(map(importlib.util.find_spec, ("sktime", "aeon"))), reason="needs sktime or aeon")
@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "classes"),
    [
        ("ItalyPowerDemand", 67, 1029, (1, 24), 2),
        ("GunPoint", 50, 150, (1, 150), 2),
        ("BasicMotions", 40, 40, (6, 100), 4),
    ],
)
def test_sets_that_wheels_have(name: str, train: int, test: int, shape: tuple[int, int], classes: int) -> None:
    data = load_dataset(f"ucr:{name}")
    assert (len(data.train) + len(data.val), len(data.test), data.classes) == (train, test, classes)
    assert data.test.tensors[0].shape[1:] == shape
