"""Readers of files that may hold anything: each gives a result or a ValueError of one line, in little memory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("PIL", reason='needs the extra "demo"')
pytest.importorskip("hypothesis", reason='needs the extra "test"')

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.limited_memory import limited_memory

from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.sources.images import read_images, read_masks

QUICK = settings(max_examples=20, derandomize=True, deadline=None, database=None,
                 suppress_health_check=list(HealthCheck))  # fmt: skip
LONG = settings(QUICK, max_examples=2000)


@pytest.fixture(scope="module", autouse=True)
def _little_memory():
    """One GiB more than this process has now: a reader that believes a header cannot get what it declares."""
    with limited_memory():
        yield


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_files() -> list[bytes]:
    grey = np.random.default_rng(0).integers(0, 65535, (9, 7), np.uint16)
    eight, wide = Image.fromarray((grey >> 8).astype(np.uint8)), Image.fromarray(grey)
    exif = Image.Exif()
    exif[0x112] = 6
    return [
        encoded(eight, "PNG", exif=exif),
        encoded(wide, "PNG"),
        encoded(eight.convert("P"), "PNG", transparency=3),
        encoded(eight.convert("RGBA"), "PNG"),
        encoded(eight, "JPEG", exif=exif),
        encoded(eight, "WEBP", lossless=True),
        encoded(wide, "TIFF", tiffinfo={0x112: 6}),
        encoded(wide, "TIFF", compression="tiff_lzw"),
        encoded(eight.convert("F"), "TIFF"),
        encoded(eight, "TIFF", save_all=True, append_images=[eight]),
        encoded(eight.convert("RGB"), "BMP"),
        encoded(wide, "PPM"),
        encoded(eight.convert("RGB"), "PPM"),
    ]


def npz_files() -> list[bytes]:
    arrays = {"images": np.arange(16 * 30, dtype=np.uint8).reshape(30, 4, 4)}
    arrays["masks"] = arrays["images"] // 100
    for part in ("train", "val", "test"):
        arrays |= {f"{part}_images": arrays["images"], f"{part}_labels": np.arange(30) % 3}
    files = [io.BytesIO(), io.BytesIO()]
    np.savez(files[0], **arrays)
    np.savez_compressed(files[1], **arrays)
    return [file.getvalue() for file in files]


def damaged(files: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the files with some bytes changed, and perhaps cut off. Headers, at the start and end, are hit often."""

    def apply(file: bytes, edits: list[tuple[float, bool, int]], keep: float) -> bytes:
        data = bytearray(file)
        for at, end, value in edits:
            near = int(at**3 * (len(data) - 1))
            data[len(data) - 1 - near if end else near] = value
        return bytes(data[: int(keep * len(data)) + 1])

    share = st.floats(0, 1)
    byte = st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255))
    edits = st.lists(st.tuples(share, st.booleans(), byte), max_size=12)
    return st.builds(apply, st.sampled_from(files), edits, st.one_of(st.just(1.0), st.just(1.0), share))


def check(read: Callable[[], object]) -> None:
    told = "read"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of broken EXIF and the like
        try:
            read()
        except ValueError as error:
            told = str(error)
    assert len(told.splitlines()) == 1, told


@pytest.mark.parametrize("setting", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)], ids=["quick", "long"])
def test_image_files(tmp_path, setting):
    path = tmp_path / "image"

    @setting
    @given(damaged(image_files()), st.sampled_from(["L", "RGB", "mask"]), st.sampled_from([None, 5]))
    def run(data: bytes, mode: str, size: int | None) -> None:
        path.write_bytes(data)
        check(lambda: read_masks([path], size) if mode == "mask" else read_images([path], mode, size))

    run()


@pytest.mark.parametrize("setting", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)], ids=["quick", "long"])
def test_npz_files(tmp_path, setting):
    path = tmp_path / "file.npz"

    @setting
    @given(damaged(npz_files()), st.sampled_from(["", "bbbc038:"]), st.sampled_from(["", "?size=3"]))
    def run(data: bytes, kind: str, size: str) -> None:
        path.write_bytes(data)
        check(lambda: load_dataset(f"{kind}{path}{size}"))

    run()


def test_the_undamaged_files_are_read_or_refused_on_purpose(tmp_path):
    refused = []
    for i, data in enumerate(image_files()):
        (tmp_path / str(i)).write_bytes(data)
        try:
            read_images([tmp_path / str(i)], "L", None)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) == 2  # float, and two pages
    for data in npz_files():
        (tmp_path / "file.npz").write_bytes(data)
        for kind in ("", "bbbc038:"):
            load_dataset(f"{kind}{tmp_path / 'file.npz'}")
