"""Image files: white is white whatever a file stores, masks are what is not 0, and what may mean two things is refused.

Pillow writes the files; numpy arrays are what they should be read as.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason='needs the extra "demo"')

from PIL import Image

from explainfix_ext.training.sources.images import foreground, read_images, read_masks

RAMP = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
SMALL = np.arange(48, dtype=np.uint8).reshape(6, 8)


def saved(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def pgm(path: Path, pixels: np.ndarray, white: int) -> Path:
    path.write_bytes(f"P5 {pixels.shape[1]} {pixels.shape[0]} {white}\n".encode() + pixels.astype(">u2").tobytes())
    return path


def tiff(path: Path, pixels: bytes, width: int, height: int, tags: dict[int, int]) -> Path:
    """A TIFF as its specification has it, which Pillow cannot write: one strip, and tags of one short number each."""
    tags = {256: width, 257: height, 259: 1, 277: 1, 278: height, 279: len(pixels)} | tags
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4  # where the pixels begin
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\3\0\1\0\0\0" + tags[tag].to_bytes(4, "little") for tag in sorted(tags)
    )
    path.write_bytes(b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + entries + bytes(4) + pixels)
    return path


@pytest.mark.parametrize("name", ["ramp.png", "ramp.tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_16_bits_lose_nothing(tmp_path, name, mode):
    images = read_images([saved(tmp_path / name, RAMP)], mode, None)
    expected = torch.from_numpy(RAMP / 257).float().expand(1, 3 if mode == "RGB" else 1, 32, 32)
    torch.testing.assert_close(images, expected)
    assert len(images.unique()) == 1024


def test_bits_that_the_file_names_are_its_white(tmp_path):
    twelve = np.array([[0, 1, 4095, 2048]], np.uint16)
    packed = bytes([0x00, 0x00, 0x01, 0xFF, 0xF8, 0x00])  # twice 12 bits in 3 bytes
    plain = pgm(tmp_path / "a.pgm", twelve, 4095)
    packed_file = tiff(tmp_path / "a.tif", packed, 4, 1, {258: 12, 262: 1})
    expected = torch.from_numpy(twelve * (255 / 4095)).float()[None, None]
    for path in (plain, packed_file):
        torch.testing.assert_close(read_images([path], "L", None), expected, atol=0.01, rtol=0)


def test_a_tiff_whose_0_is_white_is_turned_round_in_16_bits_too(tmp_path):
    pixels = np.array([[0, 65535, 257]], "<u2")
    path = tiff(tmp_path / "a.tif", pixels.tobytes(), 3, 1, {258: 16, 262: 0})
    torch.testing.assert_close(read_images([path], "L", None), torch.tensor([[[[255.0, 0.0, 254.0]]]]))


@pytest.mark.parametrize(
    ("mode", "value", "grey", "colour"),
    [
        ("1", 1, 255, (255, 255, 255)),
        ("L", 77, 77, (77, 77, 77)),
        ("LA", (77, 10), 77, (77, 77, 77)),
        ("RGB", (255, 0, 0), 76, (255, 0, 0)),
        ("RGBA", (255, 0, 0, 10), 76, (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), 76, (255, 0, 0)),
    ],
)
def test_modes_of_8_bits_become_grey_and_colour(tmp_path, mode, value, grey, colour):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (3, 2), value).save(path)
    assert read_images([path], "L", None).unique().tolist() == [grey]
    assert read_images([path], "RGB", None)[0, :, 0, 0].tolist() == list(colour)
    assert read_images([path], "L", None).dtype == torch.uint8


def test_palettes_are_their_colours(tmp_path):
    image = Image.fromarray(np.full((2, 3), 5, np.uint8), "P")
    image.putpalette([0, 0, 0] * 5 + [10, 20, 30])
    image.save(tmp_path / "a.png", transparency=5)
    assert read_images([tmp_path / "a.png"], "RGB", None)[0, :, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images(tmp_path, orientation):
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    for name, pixels, options in (
        ("a.png", SMALL, {"exif": exif}),
        ("b.png", SMALL.astype(np.uint16) * 1000, {"exif": exif}),
        ("a.webp", SMALL, {"exif": exif, "lossless": True}),
        ("a.tif", SMALL, {"tiffinfo": {0x112: orientation}}),  # not compressed: Pillow 13 maps it the wrong way round
        ("b.tif", SMALL, {"tiffinfo": {0x112: orientation}, "compression": "tiff_lzw"}),
    ):
        path = saved(tmp_path / name, pixels, **options)
        expected = turn(pixels) if pixels.dtype == np.uint8 else turn(pixels) / 257
        np.testing.assert_allclose(read_images([path], "L", None)[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_damaged_exif_does_not_turn_images(tmp_path, ending):
    path = saved(tmp_path / f"a.{ending}", SMALL, exif=b"Exif\0\0garbage", quality=95)
    assert read_images([path], "L", None).shape[2:] == SMALL.shape


def several(path: Path) -> Path:
    image = Image.new("L", (8, 6))
    image.save(path, save_all=True, append_images=[Image.new("L", (8, 6), 9)])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: saved(p / "a.tif", RAMP.astype(np.float32)), "float or 32 bits, so that its white is not known"),
        (lambda p: saved(p / "a.tif", RAMP.astype(np.int32)), "float or 32 bits, so that its white is not known"),
        (lambda p: several(p / "a.tif"), "holds several pictures"),
        (lambda p: several(p / "a.png"), "holds several pictures"),
        (lambda p: several(p / "a.webp"), "holds several pictures"),
    ],
)
def test_what_may_mean_two_things_is_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=f"/a.* cannot be read .*{message}"):
        read_images([make(tmp_path)], "L", None)


def test_12_bits_in_16_are_kept_alone_and_refused_where_they_would_be_dark(tmp_path):
    twelve = saved(tmp_path / "12.png", RAMP // 16)
    eight, full = saved(tmp_path / "8.png", SMALL), saved(tmp_path / "16.png", RAMP)
    assert len(read_images([twelve, twelve], "L", None).unique()) == 1024
    with pytest.raises(ValueError, match=r"12.png has 16 bits beside images of 8 bits, and uses at most 12 of them"):
        read_images([twelve, eight], "L", 8)
    mixed = read_images([full, eight], "L", 32)
    assert (mixed.dtype, float(mixed[0].max()), float(mixed[1].max())) == (torch.float32, 255, 47)


def png_in_colour(path: Path, pixels: np.ndarray) -> Path:
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_colour_of_16_bits_is_read_by_its_upper_8_or_refused(tmp_path):
    colour = np.stack([RAMP] * 3, 2)
    full = read_images([png_in_colour(tmp_path / "a.png", colour)], "RGB", None)
    np.testing.assert_array_equal(full[0].permute(1, 2, 0), colour >> 8)
    with pytest.raises(ValueError, match=r"b.png has 16 bits in colour, and uses at most 12 of them"):
        read_images([png_in_colour(tmp_path / "b.png", colour // 16)], "RGB", None)


# Larger than allowed, and broken -------------------------------------------------------------------------------------


def test_a_bomb_is_one_line(tmp_path, monkeypatch, recwarn):
    path = saved(tmp_path / "a.png", SMALL)
    for limit in (30, 20):  # Pillow warns of more pixels than that, and refuses twice as many
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if limit == 30:
            assert read_images([path], "L", None).shape == (1, 1, 6, 8)
            assert not recwarn
            continue
        with pytest.raises(ValueError, match=r"a.png cannot be read \(Image size .* exceeds limit") as error:
            read_images([path], "L", None)
        assert "\n" not in str(error.value)


def test_an_image_that_does_not_fit_is_not_unpacked(tmp_path, monkeypatch):
    from explainfix_ext.training.sources import images

    path = saved(tmp_path / "a.png", SMALL)
    monkeypatch.setattr(images, "memory_bytes", lambda: 48 * 4 * 2)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"a.png cannot be read \(it takes .*make the images smaller"):
        read_images([path], "RGB", None)


# Masks ---------------------------------------------------------------------------------------------------------------


SQUARE = np.zeros((6, 8), np.uint8)
SQUARE[1:4, 2:5] = 1


@pytest.mark.parametrize("value", [1, 127, 255])
def test_whatever_number_is_foreground(tmp_path, value):
    masks = read_masks([saved(tmp_path / "a.png", SQUARE * np.uint8(value))], None)
    np.testing.assert_array_equal(masks[0, 0], SQUARE == 1)


def test_masks_of_ids_palettes_colour_and_16_bits(tmp_path):
    ids = SQUARE * np.arange(8, dtype=np.uint8)
    indexed = Image.fromarray(ids, "P")
    indexed.putpalette([255, 255, 255] + [0, 0, 0] * 8)  # the luminance of the foreground is 0
    indexed.save(tmp_path / "index.png")
    blue = np.zeros((6, 8, 3), np.uint8)
    blue[..., 2] = SQUARE
    cut_out = np.full((6, 8, 4), 200, np.uint8)
    cut_out[..., 3] = SQUARE * 255
    for path in (
        tmp_path / "index.png",
        saved(tmp_path / "ids.png", ids),
        saved(tmp_path / "colour.png", blue),
        saved(tmp_path / "cut_out.png", cut_out),
        saved(tmp_path / "wide.png", ids.astype(np.uint16)),
        saved(tmp_path / "float.tif", ids.astype(np.float32)),
        saved(tmp_path / "int.tif", ids.astype(np.int32)),
        saved(tmp_path / "bit.png", SQUARE == 1),
    ):
        np.testing.assert_array_equal(read_masks([path], None)[0, 0], SQUARE == 1, err_msg=path.name)


def test_a_resized_pixel_is_foreground_if_half_of_it_is(tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :6] = 1
    masks = read_masks([saved(tmp_path / "a.png", mask)], 4)
    assert masks[0, 0, 0].tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: saved(p / "a.jpg", SQUARE), "JPEG changes the numbers of a mask: save it as PNG"),
        (lambda p: saved(p / "a.tif", SQUARE.astype(np.float32) / 2), "whole numbers, 0 for the background"),
        (lambda p: saved(p / "a.tif", SQUARE.astype(np.float32) * np.nan), "whole numbers, 0 for the background"),
        (lambda p: saved(p / "a.tif", -SQUARE.astype(np.int32)), "numbers from 0, got -1"),
    ],
)
def test_masks_without_a_background_of_0_are_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=f"/a.* cannot be read .*{message}"):
        read_masks([make(tmp_path)], None)


def test_foreground_of_arrays():
    for kind in (bool, np.uint8, np.int64, np.float32):
        np.testing.assert_array_equal(foreground(SQUARE.astype(kind)), SQUARE == 1)
