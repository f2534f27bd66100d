"""Reads data sets of the UCR and UEA archives of time series: NAME_TRAIN.ts and NAME_TEST.ts. `readers` calls it.

Source: Dau et al. 2019, "The UCR time series archive"; https://www.timeseriesclassification.com has the files.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from explainfix_ext._support.text import first_line, shown

_LAYOUT = "expected NAME_TRAIN.ts and NAME_TEST.ts of the UCR archive (timeseriesclassification.com)"
_LIBRARIES = ("sktime", "aeon")  # their wheels have some data sets, in datasets/data


def read_ucr(path: str) -> tuple[list[str], list[tuple[Tensor, Tensor]]]:
    """Reads a data set.

    Args:
        path: FOLDER/NAME, where the two files are in FOLDER or in FOLDER/NAME; or the NAME of a data set that an
            installed sktime or aeon has.

    Returns:
        The names of the classes, and for training and test the series (N, channels, L) float32 with their classes (N,).

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a file is damaged, has values missing or series of several lengths, or the two do not fit.
    """
    files = _files(path)
    parts = [_read(file) for file in files]
    names = sorted({label for _, labels in parts for label in labels})
    if len(names) < 2:
        raise ValueError(f"{files[0]} has one class, {shown(names[0])}: {_LAYOUT}")
    shapes = [list(series.shape[1:]) for series, _ in parts]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{files[1]} has series of [channels, length] = {shapes[1]}, the training series are {shapes[0]}"
        )
    return names, [(series, torch.tensor([names.index(label) for label in labels])) for series, labels in parts]


def _files(path: str) -> list[Path]:
    given = Path(path).expanduser()
    folders = [given.parent, given]
    if given.name == path:  # a name alone
        specs = [importlib.util.find_spec(library) for library in _LIBRARIES]  # finds, and imports nothing
        folders += [
            Path(place) / "datasets/data" / path for s in specs if s for place in s.submodule_search_locations or ()
        ]
    for folder in folders:
        files = [folder / f"{given.name}_{part}.ts" for part in ("TRAIN", "TEST")]
        if all(file.is_file() for file in files):
            return files
    where = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"{given.name}_TRAIN.ts not found in {where}: {_LAYOUT}, or a name that sktime or aeon has")


def _read(file: Path) -> tuple[Tensor, list[str]]:
    """Reads one file: its series (N, channels, L), and their labels."""
    series: list[np.ndarray] = []
    labels: list[str] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} cannot be read ({first_line(error)}): {_LAYOUT}") from None
    start = next((n for n, line in enumerate(lines) if line.strip().lower() == "@data"), None)
    if start is None:
        raise ValueError(f"{file} has no line @data: {_LAYOUT}")
    for n, line in enumerate(lines[start + 1 :], start + 2):
        *channels, label = line.strip().split(":")
        if not line.strip():
            continue
        try:
            rows = [np.array(channel.split(","), dtype=np.float32) for channel in channels]
            series.append(np.stack(rows))
        except ValueError as error:
            raise ValueError(
                f"{file}, line {n}: {first_line(error)}: expected numbers, a colon after each channel, and the class"
            ) from None
        if not np.isfinite(series[-1]).all() or series[-1].shape != series[0].shape:
            what = f"{series[-1].shape} after {series[0].shape}" if np.isfinite(series[-1]).all() else "a value missing"
            raise ValueError(f"{file}, line {n}: series must be whole and of one length, got {what}")
        labels.append(label)
    if not series:
        raise ValueError(f"{file} has no series: {_LAYOUT}")
    return torch.from_numpy(np.stack(series)), labels
