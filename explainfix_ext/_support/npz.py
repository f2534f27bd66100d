"""This module reads .npz files that may come from anywhere: sizes are checked before anything is unpacked."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .machine import memory_bytes
from .text import first_line, listed

_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(
    path: Path,
    names: Sequence[str],
    expected: str,
    check: Callable[[str, tuple[int, ...], np.dtype], None] = lambda name, shape, dtype: None,
) -> dict[str, np.ndarray]:
    """Reads arrays of numbers from an .npz file, if they are what their headers say and fit into memory.

    Args:
        path: the file.
        names: of the arrays; all must be in it. Others are not looked at.
        expected: what the file should be, for messages.
        check: is called with the name, shape and type of each array before the first is unpacked; raises if that is
            not what the caller wants.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, lacks an array, holds Python objects, or would not fit into memory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: {expected}")
    with _told(path, expected):
        file = zipfile.ZipFile(path)
    with file:
        found = [name.removesuffix(".npy") for name in file.namelist()]
        missing = next((name for name in names if name not in found), None)
        if missing is not None:
            raise ValueError(f"{path} has no {missing} but {listed(found)}: {expected}")
        with _told(path, expected):
            headers = {name: _header(file, name) for name in names}
        for name, (shape, dtype) in headers.items():
            check(name, shape, dtype)
        need = sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers.values())
        if need > 0.8 * memory_bytes():
            amounts = f"{need / 2**30:.0f} GiB and this process may have {memory_bytes() / 2**30:.0f}"
            raise ValueError(f"{path} takes {amounts}: {expected}")
        with _told(path, expected):
            return {name: _array(file, name) for name in names}


def _header(file: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Reads shape and type of an array, which must take as many bytes as the zip file says that there are."""
    info = file.getinfo(f"{name}.npy")
    with file.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _READ_HEADER:
            raise ValueError(f"{name} is of version {version} of the .npy format")
        shape, _, dtype = _READ_HEADER[version](stream)
        held = info.file_size - stream.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{name} holds {held} bytes and should be {dtype} {list(shape)}")
    return shape, dtype


def _array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


@contextlib.contextmanager
def _told(path: Path, expected: str) -> Iterator[None]:
    """Turns what is raised into one line: zipfile, zlib and numpy raise a dozen kinds of errors for broken files."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}): {expected}") from None
