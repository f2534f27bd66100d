"""Reads a table of images and their tags, such as that of Planet's images of the Amazon. `readers` calls it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from explainfix_ext._support.text import shown

from . import folders
from .csv_files import read_rows

LAYOUT = "expected a table (CSV) with columns image and tags, such as a.jpg and 'clear road'"


def read_tags(file: Path, folder: Path) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """Reads which image has which tags.

    Args:
        file: a table with the columns image (or image_name), the name of a file with or without its ending, and tags,
            with spaces between.
        folder: where the images are, in it or in folders within it.

    Returns:
        The image files; their targets (N, tags) float32, 1 or 0; and the tags, sorted.

    Raises:
        FileNotFoundError: the table, the folder or an image is not there.
        ValueError: the table cannot be read, a name fits two images, or there are fewer than two tags.
    """
    table = read_rows(file, ("image", "tags"), LAYOUT, {"image_name": "image"})
    rows = [(where, row["image"], row["tags"].split()) for where, row in table]
    tags = sorted({tag for _, _, words in rows for tag in words})
    if len(tags) < 2:
        raise ValueError(f"{file} must have two tags at least, got {', '.join(tags) or 'none'}: {LAYOUT}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} not found: expected the folder of the images, ?images=FOLDER")
    named: dict[str, list[Path]] = {}
    for image in folders.find_images(folder, []):
        inside = image.relative_to(folder)
        for text in {inside.as_posix(), inside.with_suffix("").as_posix()}:
            named.setdefault(text, []).append(image)
    files = []
    for where, name, _ in rows:
        found = named.get(name, [])
        if len(found) != 1:
            error = ValueError if found else FileNotFoundError
            raise error(f"{where}: {len(found) or 'no'} images in {folder} are called {shown(name)}, expected one")
        files.append(found[0])
    return files, torch.tensor([[float(tag in words) for tag in tags] for _, _, words in rows]), tuple(tags)
