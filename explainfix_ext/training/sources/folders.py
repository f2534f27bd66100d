"""Finds the images of a data set in its folders: which part and class each is of, and what is left out."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

# The names of the folders of each part, in lower case; upper case makes no difference.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
LAYOUT = "expected one folder of images per class, as they are or inside folders train, val and test"

_PART_OF = {name: part for part, names in PARTS.items() for name in names}
_LIKE_A_PART = re.compile(rf"(?:{'|'.join(_PART_OF)})(?:set|data)?")  # a word of test_set, seg_train or traindata
_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_NOT_THE_USERS = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # an unpacker's, a file server's, Windows'


def find_parts(root: Path, left: list[Path]) -> dict[str, Path]:
    """Returns the folders of train, val and test; `root` as train if it has none of them.

    Args:
        root: the folder of the data set.
        left: gets the other folders in it, which are left out.

    Raises:
        FileNotFoundError: there are folders of val or test and none of train.
        ValueError: two folders are of one part, such as val and valid; or a folder of folders, such as test_set, has a
            name like that of a part and is none, so that its images would be taken for those of a class.
    """
    folders = _visible_folders(root)
    parts: dict[str, Path] = {}
    for folder in folders:
        part = _PART_OF.get(folder.name.lower())
        if part in parts:
            raise ValueError(f"{root} has folders {parts[part].name} and {folder.name}, which are both of {part}")
        if part is not None:
            parts[part] = folder
    if not parts:
        like = next((folder for folder in folders if _is_like_a_part(folder)), None)
        if like is not None:
            raise ValueError(f"{like} may be a part or a class: name the parts {', '.join(PARTS)}")
        return {"train": root}
    if "train" not in parts:
        raise FileNotFoundError(
            f"{root} has folders {', '.join(f.name for f in parts.values())} and no train: {LAYOUT}"
        )
    left += [entry for entry in visible(root) if entry not in parts.values()]
    return {part: parts[part] for part in PARTS if part in parts}


def find_classes(part: Path, left: list[Path]) -> dict[str, list[Path]]:
    """Returns the images of each class, a folder in `part`; they may lie in folders within it.

    Args:
        part: the folder of a part, or of the data set.
        left: gets the files that are left out.

    Raises:
        FileNotFoundError: there are no folders, or one of them has no images.
        ValueError: a class has a folder of a part in it, so that its images would be mixed.
    """
    folders = _visible_folders(part)
    if not folders:
        raise FileNotFoundError(f"{part} has no folders of classes: {LAYOUT}")
    left += [entry for entry in visible(part) if entry not in folders]
    classes = {}
    for folder in folders:
        inside = next((inner for inner in _visible_folders(folder) if inner.name.lower() in _PART_OF), None)
        if inside is not None:
            raise ValueError(f"{inside} is a part in a class: {LAYOUT}, such as {inside.name}/{folder.name}")
        classes[folder.name] = find_images(folder, left)
        if not classes[folder.name]:
            raise FileNotFoundError(f"{folder} has no images ({', '.join(_ENDINGS)}): {LAYOUT}")
    return classes


def find_images(folder: Path, left: list[Path]) -> list[Path]:
    """Returns the images in a folder and in those within it, sorted; `left` gets the other files."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found.append((place, sorted(name for name in names if not _is_hidden(name))))
    files = [Path(place, name) for place, names in sorted(found) for name in names]
    images = [file for file in files if file.suffix.lower() in _ENDINGS]
    left += [file for file in files if file.suffix.lower() not in _ENDINGS]
    return images


def warn_of(left: Iterable[Path], root: Path) -> None:
    """Warns in one line of the files and folders that are left out; hidden ones are not worth one."""
    folders = [path.name for path in left if path.is_dir()]
    files = [path for path in left if not path.is_dir()]
    parts = []
    if files:
        endings = sorted({file.suffix.lower() or "no ending" for file in files})
        parts.append(f"{len(files)} files that are no images or in no class ({', '.join(endings[:8])})")
    if folders:
        parts.append(f"{len(folders)} folders ({', '.join(folders[:8])})")
    if parts:
        warnings.warn(f"{root}: left out {' and '.join(parts)}", stacklevel=2)


def visible(folder: Path) -> list[Path]:
    """Returns what is in a folder and not hidden, sorted."""
    return sorted(entry for entry in folder.iterdir() if not _is_hidden(entry.name))


def _visible_folders(folder: Path) -> list[Path]:
    return [entry for entry in visible(folder) if entry.is_dir()]


def _is_like_a_part(folder: Path) -> bool:
    """Says whether a folder has folders in it, and a word in its name that is of a part."""
    words = re.split(r"[\W_]+", folder.name.lower())
    return any(map(_LIKE_A_PART.fullmatch, words)) and bool(_visible_folders(folder))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_THE_USERS
