"""An .npz file is read if it is what it says: its sizes are checked before anything is unpacked."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from explainfix_ext._support import npz


def file_with(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", content)
    return path


def header(text: str, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


def declared(shape: str, descr: str = "'|u1'") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n")


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_were_saved(tmp_path, save):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.ones((3, 2), ">i2")), "c": np.array(7)}
    save(tmp_path / "x.npz", **arrays, left=np.array([None]))
    seen = {}
    found = npz.read_npz(tmp_path / "x.npz", list(arrays), "", lambda n, shape, dtype: seen.update({n: (shape, dtype)}))
    assert seen == {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (declared("(784000000000,)") + b"x", r"a holds 1 bytes and should be uint8 \[784000000000\]"),
        (declared("(-1,)") + b"x", "a holds 1 bytes and should be"),
        (declared("(2,)", "'|O'") + b"x" * 16, "a holds Python objects, which are not read"),
        (objects(), "a holds Python objects, which are not read"),
        (header("(" * 9000), "cannot be read"),
        (header("x" * 60000), "cannot be read"),
        (header("{}", b"\3\0"), r"a is of version \(3, 0\) of the .npy format"),
        (b"\x93NUM", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_headers_that_lie_or_are_broken_are_told(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"x.npz .*{message}.*: expected an image") as error:
        npz.read_npz(file_with(tmp_path / "x.npz", content), ["a"], "expected an image")
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1_000_000, np.uint8), b=np.zeros(1_000_000, np.uint8))
    monkeypatch.setattr(npz, "memory_bytes", lambda: 2_000_000)
    monkeypatch.setattr(npz, "_array", lambda file, name: name)
    assert npz.read_npz(tmp_path / "x.npz", ["a"], "") == {"a": "a"}
    monkeypatch.setattr(npz, "_array", lambda file, name: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"x.npz takes 0 GiB and this process may have 0: expected arrays"):
        npz.read_npz(tmp_path / "x.npz", ["a", "b"], "expected arrays")

    def refuse(name, shape, dtype):
        raise ValueError("not wanted")

    with pytest.raises(ValueError, match="not wanted"):
        npz.read_npz(tmp_path / "x.npz", ["a"], "", refuse)


def test_a_missing_array_is_told_in_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for i in range(100):
            file.writestr(f"a\n{i}.npy", b"")
    with pytest.raises(ValueError, match=r"x.npz has no a but a 0, a 1, .*, \.\.\.: expected an image") as error:
        npz.read_npz(tmp_path / "x.npz", ["a"], "expected an image")
    assert len(str(error.value)) < 800
    assert "\n" not in str(error.value)


def test_memory_is_the_machines_or_less(monkeypatch):
    import resource

    from explainfix_ext._support.machine import memory_bytes

    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    all_of_it = memory_bytes()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**20, resource.RLIM_INFINITY))
    assert memory_bytes() == 2**20 < all_of_it


def test_encrypted_files_are_told(tmp_path):
    path = file_with(tmp_path / "x.npz", declared("(1,)") + b"x")
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):  # the flags of the entry, in the directory and before the data
        data[data.index(mark) + at] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x.npz cannot be read .*encrypted"):
        npz.read_npz(path, ["a"], "")
