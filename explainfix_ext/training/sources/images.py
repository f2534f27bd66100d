"""Reads image files and masks into tensors, whatever a file stores a pixel as. `readers` calls it."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from explainfix_ext._support.machine import memory_bytes
from explainfix_ext._support.progress import counted
from explainfix_ext._support.text import first_line

if TYPE_CHECKING:
    from PIL.Image import Image

_LOSSY = ("JPEG", "MPO", "WEBP")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WIDE_COLOUR = re.compile(r"'(?!BGR)\w+;16")  # how Pillow names colour of 16 bits a channel; BGR;16 has 16 in all


def read_images(paths: Sequence[Path], mode: Literal["L", "RGB"], size: int | None) -> Tensor:
    """Reads image files into (N, 1 or 3, H, W), from 0 (black) to 255 (white).

    White is the largest number that a file's bits can hold: 1 in 1 bit, 255 in 8, 65535 in 16, 4095 in a TIFF of 12.
    Palettes become their colours, colours grey by their luminance (mode L), grey three equal channels (RGB).
    Transparency is left out, the EXIF orientation followed. Colour of 16 bits is read by its upper 8, as Pillow does.

    Args:
        paths: the files of a whole data set, so that all are held against each other.
        mode: L for grey, RGB for colour.
        size: they are resized to size x size; if it is None, all must be of one size.

    Returns:
        uint8, or float32 if a grey image has more than 8 bits.

    Raises:
        ValueError: a file is no image or damaged; has no known white (float, 32 bits); holds several pictures; is of
            another size; is too large; or may be of 12 bits in 16 where that would change what it shows.
    """
    images: list[Tensor] = []
    wide: list[Path] = []
    colour, brightest = False, 0.0  # of those in `wide`: is there one in colour, and the largest number
    for path in counted(paths, "reading images"):
        pixels, bits = _read(path, lambda file, bits: _pixels(file, bits, mode))
        if bits > 8:
            wide.append(path)
            colour, brightest = colour or pixels.dtype == np.uint8, max(brightest, float(pixels.max()))
        _append(images, pixels, size, path, paths)
    if 0 < brightest < 16 and (colour or len(wide) < len(paths)):
        beside = "in colour" if colour else "beside images of 8 bits"
        raise ValueError(f"{wide[0]} has 16 bits {beside}, and uses at most 12 of them: save it with 8 bits")
    deep = any(image.is_floating_point() for image in images)
    return torch.stack([image.float() for image in images] if deep else images)


def read_masks(paths: Sequence[Path], size: int | None) -> Tensor:
    """Reads masks into (N, 1, H, W) bool: foreground is every pixel whose stored number is not 0.

    In a palette that is the index, in colour any of the channels; what is fully transparent is background. Resized to
    size x size, a pixel is foreground if at least half of the area that it covers is.

    Raises:
        ValueError: as `read_images`; or a file is compressed with loss, so that its background is not 0.
    """
    masks: list[Tensor] = []
    for path in paths:
        _append(masks, _read(path, _mask)[0], size, path, paths)
    return torch.stack(masks) >= 128


def foreground(numbers: np.ndarray) -> np.ndarray:
    """Says which numbers of a mask are foreground: those other than 0.

    Raises:
        ValueError: a number is negative or not whole, so that foreground and background may be meant otherwise.
    """
    if numbers.dtype.kind not in "bui" and not np.array_equal(numbers, np.floor(numbers)):
        raise ValueError("a mask must hold whole numbers, 0 for the background, got fractions")
    if numbers.dtype.kind not in "bu" and numbers.size and numbers.min() < 0:
        raise ValueError(f"a mask must hold numbers from 0, got {numbers.min()}")
    return numbers != 0


def check_memory(what: str, *shape: int) -> None:
    """Refuses images that would not fit into memory as float32, which is how they are kept.

    Args:
        what: the images, for the message.
        shape: N, C, H, W.

    Raises:
        ValueError: they would take more than four fifths of the memory that this process may have.
    """
    need, have = 4 * math.prod(shape), memory_bytes()
    if need > 0.8 * have:
        amounts = f"{need / 2**30:.0f} GiB as float32 and this machine has {have / 2**30:.0f}"
        raise ValueError(f"{what} takes {amounts}: make the images smaller with ?size=")


def resize(images: Tensor, size: int | None) -> Tensor:
    """Resizes (N, C, H, W) to (N, C, size, size) with antialiasing, in its own type; size None leaves it as it is."""
    if size is None or images.shape[2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _append(images: list[Tensor], pixels: np.ndarray, size: int | None, path: Path, paths: Sequence[Path]) -> None:
    """Appends an image (H, W) or (H, W, C) as (C, H, W), resized; it must be of the size of the first."""
    image = torch.from_numpy(pixels)
    image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
    if not images:
        check_memory(f"{len(paths)} images like {path}", len(paths), len(image), *(size or n for n in image.shape[1:]))
    images.append(resize(image[None], size)[0])
    if images[-1].shape != images[0].shape:
        sizes = f"{path} is {list(image.shape[1:])} pixels, {paths[0]} {list(images[0].shape[1:])}"
        raise ValueError(f"{sizes}: add ?size=128 to make them equal")


def _read(path: Path, decode: Callable[[Image, int], np.ndarray]) -> tuple[np.ndarray, int]:
    """Opens a file, turns it as EXIF says, and decodes it; returns its pixels, and how many bits a number has.

    Everything that goes wrong is told in one line.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_memory knows what is too large
            # Given a path, Pillow 12 and 13 map an uncompressed TIFF that is to be turned with its sides exchanged.
            with open(path, "rb") as opened, Image.open(opened) as file:
                if getattr(file, "is_animated", False) and file.format != "MPO":  # a camera's: the first is the photo
                    raise ValueError("it holds several pictures")
                check_memory("it", 1, 3, file.height, file.width)
                bits = _bits(file)
                file.load()  # what is damaged here is the image; what is, behind it, only its EXIF
                with contextlib.suppress(Exception):
                    ImageOps.exif_transpose(file, in_place=True)
                return decode(file, bits), bits
    except Exception as error:  # Pillow's readers raise anything
        raise ValueError(f"{path} cannot be read ({first_line(error)}): expected an image file") from None


def _bits(file: Image) -> int:
    """Returns how many bits a stored number has: 8 or fewer are 8. Loading the pixels makes Pillow forget it."""
    if file.mode.startswith("I;16"):
        return getattr(file, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
    if file.mode == "I" and file.format in ("PNG", "PPM"):  # which have 16 at most; Pillow scales those of a PPM
        return 16
    if file.mode in ("I", "F"):
        return 32
    return 16 if _WIDE_COLOUR.search(str(getattr(file, "tile", ""))) else 8


def _pixels(file: Image, bits: int, mode: Literal["L", "RGB"]) -> np.ndarray:
    """Returns the pixels of an image, from 0 to 255: (H, W) if the mode is L, else (H, W, 3)."""
    if bits == 32:
        raise ValueError("it is float or 32 bits, so that its white is not known: save it with 8 or 16 bits")
    if not file.mode.startswith("I"):
        return np.array(file.convert(mode))
    grey = np.array(file).astype(np.float32) * np.float32(255 / (2**bits - 1))
    if getattr(file, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # 0 is white, which Pillow turns round for 8 bits only
        grey = 255 - grey
    return grey if mode == "L" else np.repeat(grey[:, :, None], 3, 2)


def _mask(file: Image, bits: int) -> np.ndarray:
    """Returns a mask (H, W) as 255 for the foreground and 0 for the background."""
    if file.format in _LOSSY:
        raise ValueError(f"{file.format} changes the numbers of a mask: save it as PNG")
    if file.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        raise ValueError(f"a mask has no number for the background in {file.mode}: save it in grey")
    marked = foreground(np.array(file))
    if file.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        marked = marked[..., :-1] & marked[..., -1:]  # opaque, at least in part
    return np.where(marked.any(-1) if marked.ndim == 3 else marked, np.uint8(255), np.uint8(0))
