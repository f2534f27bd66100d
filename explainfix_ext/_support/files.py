"""This module writes files whole or not at all, one process at a time, and finds out beforehand whether it can."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

_LOCKED: set[int] = set()  # file descriptors of `locked`


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name in its folder (made if missing), syncs it to the disk, and renames it.

    A crash leaves either the old file or the new one, never half of it. After an error (the disk is full), the old one
    is there and no temporary file.

    Args:
        path: the file to make or replace.
        write: is called with the open binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    raw = _File(temporary, "wb")
    try:
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        cause = raw.failed if raw.failed is not None and isinstance(error, Exception) else error
        if isinstance(cause, OSError) and cause.errno and cause.filename is None:
            cause.filename = str(path)  # so that the message says which file found no place
        raise cause from None
    folder = os.open(path.parent, os.O_RDONLY)  # the rename is on the disk only once the folder is synced too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _File(io.FileIO):
    """Remembers the error of a write: torch.save loses it, and raises another that does not name the cause."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def check_writable(*files: Path) -> None:
    """Checks, before long work, that `write_atomic` can write files. It makes nothing.

    Raises:
        IsADirectoryError: there is a folder of that name.
        NotADirectoryError: a part of the path is a file, not a folder.
        OSError: the folder, or the nearest one that is there, cannot be written into, or a name is too long.
    """
    for file in files:
        _check_no_folder(file)  # first, as "." has no name to make a temporary one of
        _check_no_folder(_temporary(file))
        folder = next(parent for parent in file.absolute().parents if os.path.lexists(parent))
        if not folder.is_dir():
            raise NotADirectoryError(f"{file} must be in a folder, {folder} is a file")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{file} cannot be written: no permission to write into {folder}")


def _check_no_folder(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise IsADirectoryError(f"{path} is a folder: it is in the way of a file to write")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes that lock `folder` out of it. It is made if missing, and removed if it is left empty.

    The kernel unlocks it when this process ends, even if it is killed: no lock is ever stale.

    Raises:
        FileExistsError: another process has locked it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    _LOCKED.add(handle)
    try:
        _lock(handle, folder)
        yield
    finally:
        _LOCKED.discard(handle)
        os.close(handle)
        with contextlib.suppress(OSError):  # raised by the first that is not empty
            for path in made:
                path.rmdir()


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(f"another process writes into {folder}: wait for it, or choose another --out") from None
    except OSError:
        pass  # a network file system without locks: go on as if alone


def _forget_locks() -> None:
    """Closes the locked folders in a forked child, a loader of images, which may outlive a parent that is killed."""
    for handle in _LOCKED:
        os.close(handle)
    _LOCKED.clear()


os.register_at_fork(after_in_child=_forget_locks)
