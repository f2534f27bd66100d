"""Changes training images at random, and their masks alike: what `--augment` names. `Trainer` calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from explainfix_ext._support.text import shown, times

Batch = tuple[Tensor, Tensor]  # images (N, C, H, W) from 0 (black) to 1 (white), and their targets

_OFTEN = 0.8  # share of the images that get noise, and of those that get another brightness
_NOISE = (0.1, 0.2)  # standard deviations of noise, of the way from black to white
_SHIFT = 0.4  # the most that brightness is shifted by, of the way from black to white


def _flip(images: Tensor, targets: Tensor) -> Batch:
    """Mirrors half of the images left to right, and half of all top to bottom."""
    for axis in (2, 3):
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        images = torch.where(mirrored, images.flip(axis), images)
        targets = torch.where(mirrored, targets.flip(axis), targets) if targets.ndim == 4 else targets
    return images, targets


def _noise(images: Tensor, targets: Tensor) -> Batch:
    least, most = _NOISE
    size = (least + (most - least) * torch.rand(len(images), 1, 1, 1)) * _chosen(images, _OFTEN)
    return images + size * torch.randn_like(images), targets


def _shift(images: Tensor, targets: Tensor) -> Batch:
    return images + _SHIFT * (2 * torch.rand(len(images), 1, 1, 1) - 1) * _chosen(images, _OFTEN), targets


def _invert(images: Tensor, targets: Tensor) -> Batch:
    return torch.where(_chosen(images, 0.5), 1 - images, images), targets


def _chosen(images: Tensor, share: float) -> Tensor:
    return torch.rand(len(images), 1, 1, 1) < share


# Name -> what it does; "crop:PIXELS" takes a number and is beside them.
_KINDS: dict[str, Callable[[Tensor, Tensor], Batch]] = {
    "flip": _flip,
    "noise": _noise,
    "shift": _shift,
    "invert": _invert,
}


class Augment:
    """Changes batches of normalised images, each image by its own random numbers, in the order that is named.

    Random numbers are of torch's default generator on the CPU, whose state checkpoints hold.

    Args:
        names: as `parse_augment` takes it; None changes nothing.
        mean, std: of the data set, by channel.
        size: (H, W) of the images; (L,) of signals, which stay as they are.

    Raises:
        ValueError: a crop is larger than the images; or something is named, and the data are signals.

    Source: the augmentations v1 to v6 of the authors' code of ExplainFix 2023, but for noise in masks.
    """

    def __init__(self, names: str | None, mean: Sequence[float], std: Sequence[float], size: tuple[int, ...]) -> None:
        self.kinds = parse_augment(names)
        if self.kinds and len(size) != 2:
            raise ValueError(f"augment changes images, and the data are signals: leave out {names}")
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self.size = next((pixels for pixels in self.kinds.values() if pixels), None)
        if self.size is not None and self.size > min(size):
            raise ValueError(f"augment crop:{self.size} is larger than the images, which are {times(size)}")

    def __call__(self, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns a batch (images, targets) changed; the given one stays as it is."""
        if not self.kinds:
            return batch
        images, targets = batch
        images = images * self.std + self.mean
        for name, pixels in self.kinds.items():
            images, targets = _crop(images, targets, pixels) if pixels else _KINDS[name](images, targets)
        return (images.clamp(0, 1) - self.mean) / self.std, targets


def parse_augment(names: str | None) -> dict[str, int]:
    """Reads what `--augment` names: any of flip, noise, shift, invert and crop:PIXELS, with commas between.

    Returns:
        Name -> pixels of a crop, 0 for the others.

    Raises:
        ValueError: a name is unknown or stands twice, or a crop has no number of pixels.

    Examples:
        >>> parse_augment("flip,crop:256")
        {'flip': 0, 'crop': 256}
    """
    found: dict[str, int] = {}
    for word in (names or "").replace(" ", "").split(",") if names else ():
        name, colon, pixels = word.partition(":")
        crop = name == "crop" and pixels.isdecimal() and int(pixels) > 0
        if not (crop or (name in _KINDS and not colon)) or name in found:
            raise ValueError(f"augment must be of {', '.join(_KINDS)} and crop:PIXELS, each once, got {shown(names)}")
        found[name] = int(pixels) if crop else 0
    return found


def _crop(images: Tensor, targets: Tensor, size: int) -> Batch:
    """Takes a random part of size x size pixels of each image, and of its mask the same."""
    height, width = images.shape[2:]
    tops = torch.randint(height - size + 1, (len(images),)).tolist()
    lefts = torch.randint(width - size + 1, (len(images),)).tolist()

    def cut(tensor: Tensor) -> Tensor:
        parts = zip(tensor, tops, lefts, strict=True)
        return torch.stack([one[:, top : top + size, left : left + size] for one, top, left in parts])

    return cut(images), cut(targets) if targets.ndim == 4 else targets
