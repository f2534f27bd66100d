"""Reads the tables of CheXpert (Irvin et al. 2019): which image has which findings. `readers` calls it.

Missing and uncertain findings are treated as in the ExplainFix paper (2023).
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from explainfix_ext._support.text import shown

from .csv_files import read_rows

TASKS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
LEADERBOARD = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
LAYOUT = "expected the folder CheXpert-v1.0-small with train.csv, valid.csv and the images of both"

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
    images: list[Path] = []
    targets: list[list[float]] = []
    for where, row in read_rows(file, ("Path", *tasks), LAYOUT):
        parts = PurePosixPath(row["Path"]).parts
        if len(parts) < 5:
            raise ValueError(f"{where}: Path must be FOLDER/train/PATIENT/STUDY/IMAGE, got {shown(row['Path'])}")
        images.append(file.parent.joinpath(*parts[1:]))
        targets.append([_target(where, name, row[name]) for name in tasks])
    return images, torch.tensor(targets, dtype=torch.float32)


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


def images_apart(images: list[Path]) -> tuple[list[int], list[int]]:
    """Splits by image; returns (rows to train on, rows to validate on), always the same 70 % and 30 %.

    A patient may be in both. This is the split of the paper's results, made as the authors' code makes it.
    """
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(138)).tolist()
    count = int(0.7 * len(images))
    return rows[:count], rows[count:]


def studies_of(images: list[Path]) -> Tensor:
    """Returns the number of each image's study, (N,) int64: the views of a study are one examination of a patient."""
    numbers: dict[tuple[str, ...], int] = {}
    return torch.tensor([numbers.setdefault(image.parts[-3:-1], len(numbers)) for image in images])
