"""This module writes files so that a crash leaves either the old file or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name in its folder (made if missing), syncs it to the disk, and renames it.

    Args:
        path: the file to make or replace.
        write: is called with the open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename is on the disk only once the folder is synced too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
