"""Reads BBBC038v1, the nuclei of the 2018 Data Science Bowl: its stages, with masks as images or as run lengths.

`readers` calls it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from explainfix_ext._support.progress import counted
from explainfix_ext._support.text import shown

from . import folders
from .csv_files import read_rows
from .images import check_memory, read_images, read_masks, resize

TRAIN = "stage1_train"
# ?test= -> the folder of test images, and the table of their nuclei beside it.
TESTS = {
    "stage1": ("stage1_test", "stage1_solution.csv"),
    "stage2": ("stage2_test_final", "stage2_solution_final.csv"),
}
_LAYOUT = "expected the folder stage1_train with <id>/images/*.png and <id>/masks/*.png, or an .npz file"
_NAMES = ("ImageId", "EncodedPixels", "Height", "Width")


def read_training(root: Path, size: int | None) -> tuple[Tensor, Tensor]:
    """Reads the images of a folder like stage1_train (N, 1, H, W), and the union of the nuclei of each, bool.

    Raises:
        FileNotFoundError: a folder or file is not there.
        ValueError: a file cannot be read, or mask and image are of different sizes.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} not found: {_LAYOUT}")
    cases = [case for case in folders.visible(root) if (case / "images").is_dir()]
    if not cases:
        raise FileNotFoundError(f"{root} has no <id>/images: {_LAYOUT}")
    left = [entry for entry in folders.visible(root) if entry not in cases]
    image_files: list[Path] = []
    masks: list[Tensor] = []
    for case in counted(cases, "reading masks"):
        nuclei = folders.find_images(case / "masks", left)
        image_files.append(_image(case, left, nuclei))
        masks.append(read_masks(nuclei, size).any(0))  # a file holds one nucleus
    folders.warn_of(left, root)
    return _together(image_files, masks, size)


def read_test(root: Path, stage: str, size: int | None) -> tuple[Tensor, Tensor]:
    """Reads the test images of a stage that counted, (N, 1, H, W), and the union of the nuclei of each, bool.

    Args:
        root: the folder in which the folder of images and the table of nuclei are, see `TESTS`.
        stage: a key of `TESTS`.
        size: images and masks are resized to size x size.

    Raises:
        FileNotFoundError: the folder, the table or an image is not there.
        ValueError: the table or an image cannot be read, or they do not fit together.
    """
    folder, table = TESTS[stage]
    layout = f"expected {table} and the folders {TRAIN} and {folder}"
    nuclei: dict[str, np.ndarray] = {}
    for where, row in read_rows(root / table, _NAMES, layout):
        if row.get("Usage") == "Ignored":  # images of stage 2 that were not annotated
            continue
        shape = _shape(where, row)
        mask = nuclei.setdefault(row["ImageId"], np.zeros(shape, bool))
        if mask.shape != shape:
            raise ValueError(f"{where}: the image was {list(mask.shape)} pixels before, now {list(shape)}")
        _draw(where, row["EncodedPixels"], mask)
    if not nuclei:
        raise ValueError(f"{root / table} has no image that counts: all are ignored")
    if not (root / folder).is_dir():
        raise FileNotFoundError(f"{root / folder} not found: {layout}")
    left: list[Path] = []
    files = [_image(root / folder / name, left, None) for name in nuclei]
    masks = [torch.from_numpy(mask)[None] for mask in nuclei.values()]
    if size is not None:
        masks = [resize(mask[None].byte() * 255, size)[0] >= 128 for mask in masks]
    return _together(files, masks, size)


def _image(case: Path, left: list[Path], nuclei: list[Path] | None) -> Path:
    """Returns the one image of a case; `nuclei` are its masks, None where a table has them."""
    images = folders.find_images(case / "images", left)
    if not images or nuclei == []:
        raise FileNotFoundError(f"{case} lacks images/*.png{' or masks/*.png' * (nuclei is not None)}: {_LAYOUT}")
    if len(images) > 1:
        raise ValueError(f"{case} has {len(images)} images, expected one: {_LAYOUT}")
    return images[0]


def _together(files: list[Path], masks: list[Tensor], size: int | None) -> tuple[Tensor, Tensor]:
    pixels = read_images(files, "L", size)
    for file, mask in zip(files, masks, strict=True):
        if mask.shape != pixels.shape[1:]:
            sizes = f"masks are {list(mask.shape[1:])} pixels, the image {list(pixels.shape[2:])}"
            raise ValueError(f"{file.parent.parent}: {sizes}")
    return pixels, torch.stack(masks)


def _shape(where: str, row: dict[str, str]) -> tuple[int, int]:
    """Returns height and width, which are numbers of pixels that fit into the memory."""
    numbers = [row[name].removesuffix(".0") for name in ("Height", "Width")]
    if not all(number.isdecimal() and 0 < int(number) < 10**6 for number in numbers):
        raise ValueError(f"{where}: Height and Width must be pixels, got {shown(', '.join(numbers))}")
    height, width = map(int, numbers)
    check_memory(where, 1, 1, height, width)
    return height, width


def _draw(where: str, runs: str, mask: np.ndarray) -> None:
    """Marks a nucleus: pairs of a first pixel, from 1, and how many follow, down the columns from left to right."""
    words = runs.split()
    numbers = [int(word) for word in words if word.isdecimal() and len(word) < 12]
    starts, lengths = np.array(numbers[::2], np.int64) - 1, np.array(numbers[1::2], np.int64)
    fits = len(numbers) == len(words) and len(starts) == len(lengths)
    if not fits or any(starts < 0) or any(starts + lengths > mask.size):
        size = f"{mask.shape[0]} x {mask.shape[1]} pixels"
        raise ValueError(f"{where}: EncodedPixels must be pairs of first pixel and count in {size}, got {shown(runs)}")
    columns = np.zeros(mask.size, bool)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        columns[start : start + length] = True
    mask |= columns.reshape(mask.shape[::-1]).T
