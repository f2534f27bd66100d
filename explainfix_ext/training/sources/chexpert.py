"""Reads the tables of CheXpert (Irvin et al. 2019): which image has which findings. `readers` calls it.

Missing and uncertain findings are treated as in the ExplainFix paper (2023).
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from explainfix_ext._support.text import listed, shown

TASKS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
LEADERBOARD = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
LAYOUT = "expected the folder CheXpert-v1.0-small with train.csv, valid.csv and the images of both"

# The mark at the start of a file -> its encoding. That of UTF-32 begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# Text of a cell -> target. A finding that is not mentioned (empty) counts as negative, an uncertain one is ignored.
_TARGETS = {"": 0.0, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0, "-1": torch.nan, "-1.0": torch.nan}


def read_table(file: Path, tasks: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Reads train.csv or valid.csv.

    Args:
        file: the table. Its Path column holds CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg; the
            first folder is replaced by the one that the table lies in, so that it may have any name.
        tasks: the findings to read, names of columns.

    Returns:
        The image files, and their targets (N, tasks) float32: 1, 0, or NaN to ignore.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column, a cell or all rows are missing, or a finding is none of "1.0", "0.0", "-1.0" and "".
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} not found: {LAYOUT}")
    images: list[Path] = []
    targets: list[list[float]] = []
    text = _text(file)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets write ; where a comma is in numbers
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = list(rows.fieldnames or [])
        for name in ("Path", *tasks):
            if columns.count(name) != 1:
                count = f"has {columns.count(name)} columns" if name in columns else "has no column"
                raise ValueError(f"{file} {count} {name!r} but {listed(columns)}")
        for row in rows:
            where = f"{file}, line {rows.line_num}"
            if None in row or None in row.values():  # how DictReader reports too many cells, and too few
                raise ValueError(f"{where}: expected {len(columns)} cells, as there are columns")
            parts = PurePosixPath(row["Path"]).parts
            if len(parts) < 5:
                raise ValueError(f"{where}: Path must be FOLDER/train/PATIENT/STUDY/IMAGE, got {shown(row['Path'])}")
            images.append(file.parent.joinpath(*parts[1:]))
            targets.append([_target(where, name, row[name]) for name in tasks])
    except csv.Error as error:
        raise ValueError(f"{file}, line {rows.line_num} cannot be read ({error}): expected a table (CSV)") from None
    if not images:
        raise ValueError(f"{file} has no rows")
    return images, torch.tensor(targets, dtype=torch.float32)


def _text(file: Path) -> str:
    """Reads a file of UTF-8, or of what the mark at its start says; letters that are no such are in no name we need."""
    data = file.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    text = data.decode(encoding, errors="replace")
    if "\0" in text:
        raise ValueError(f"{file} is no text in UTF-8, nor in UTF-16 with its mark: expected a table (CSV)")
    return text


def _target(where: str, task: str, cell: str) -> float:
    if cell not in _TARGETS:
        raise ValueError(f"{where}: {task} must be 1.0, 0.0, -1.0 or empty, got {shown(cell)}")
    return _TARGETS[cell]


def patients_apart(images: list[Path]) -> tuple[list[int], list[int]]:
    """Splits by patient; returns (rows to train on, rows to validate on).

    All images of a tenth of the patients are for validation; a hash of their names chooses them, so always the same.
    """
    patients = [image.parts[-3] for image in images]
    order = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    held = set(order[: max(1, len(order) // 10)])
    rows = range(len(images))
    return [row for row in rows if patients[row] not in held], [row for row in rows if patients[row] in held]
