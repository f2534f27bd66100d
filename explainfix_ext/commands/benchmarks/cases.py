"""Lists the workloads of `explainfix bench`, each with its name and the reason why it is there.

To add one, yield it from a function below; names must differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar

import torch

from explainfix_ext._support.text import unknown_name
from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.basis import dct_basis
from explainfix_ext.filters.make_bank import make_bank

SEED = 0
_FREQUENCIES = ((0, 0), (0, 1), (1, 0), (1, 1))  # a low-rank case mixes the DCT functions of the first `rank` of these


@dataclass(frozen=True)
class LayerCase:
    """Describes one convolution, padded by kernel // 2.

    Attributes:
        name, reason: what it is called, and why it is measured.
        in_channels, out_channels: channels of input and output.
        size: height and width of the input (batch, in_channels, size, size).
        kernel, stride, groups: settings of the convolution.
        batch: images.
        density: share of the filters that are not zero.
        rank: number of basis functions that every filter mixes; None: each filter is made by `init`.
        init: of the filters, where rank is None.
        pca: True to take random orthonormal functions instead of the lowest of the DCT, so that none is separable.
        dtype: dtype of input, output and torch's weight.
    """

    kind: ClassVar[str] = "layer"
    name: str
    reason: str
    in_channels: int
    out_channels: int
    size: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    batch: int = 8
    density: float = 1.0
    rank: int | None = None
    init: str = "dct2"
    pca: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def depthwise(self) -> bool:
        return self.groups == self.in_channels

    def bank(self) -> FilterBank:
        """Makes the filters; the same at each call."""
        if self.rank is None:
            shape = (self.out_channels, self.in_channels, self.kernel)
            return make_bank(self.init, *shape, groups=self.groups, seed=SEED, density=self.density)
        generator = torch.Generator().manual_seed(SEED)
        size = (self.out_channels, self.in_channels // self.groups, self.rank)
        coeff = torch.randn(size, generator=generator)
        if self.pca:
            columns = torch.randn(self.kernel**2, self.rank, generator=generator, dtype=torch.float64)
            rows = torch.linalg.qr(columns).Q.T
            return FilterBank(rows.reshape(self.rank, self.kernel, self.kernel), coeff=coeff)
        functions = [u * self.kernel + v for u, v in _FREQUENCIES[: self.rank]]
        return FilterBank(dct_basis((self.kernel, self.kernel))[functions], coeff=coeff)

    def operations(self, bank: FilterBank) -> tuple[str, int]:
        """Counts the operations that a kernel for this kind of bank needs at least: ("FMA" or "load-add", count).

        An index bank needs one load and add per output pixel and nonzero filter: it adds up what its functions have
        made of the input. A low-rank bank needs one FMA per output pixel, filter and function; a depthwise one, one FMA
        per output pixel and filter coefficient. A hadamard bank needs one FMA for each number of its rows and columns,
        and the additions of its transform, which count as FMAs. Applying an index or low-rank bank's functions to the
        input is left out, although it is much of the work if output channels are few; so the fraction of the peak comes
        out too low there. The input gradient needs as many.
        """
        pixels, filters = self.batch * self.out_size**2, bank.shape[0] * bank.shape[1]
        if bank.hadamard is not None:
            return "FMA", bank.hadamard.operations * pixels
        if self.depthwise:
            return "FMA", filters * self.kernel**2 * pixels
        if bank.index is None:
            return "FMA", filters * bank.rank * pixels
        return "load-add", int(bank.nonzero.sum()) * pixels

    def quick(self) -> LayerCase:
        """Returns the case with one small image: shows that it runs, not how fast."""
        return dataclasses.replace(self, batch=1, size=min(self.size, 14))


@dataclass(frozen=True)
class ModelCase:
    """Describes a whole network.

    Attributes:
        name, reason: what it is called, and why it is measured.
        model: a name that `build_model` accepts.
        task: "training" (forward, loss, backward, SGD step) or "inference" (eval mode, no gradients).
        batch, size: images are (batch, 3, size, size). ImageNet's size, 224, would take three times as long as 128.
        classes: outputs per image or, of a segmentation network, per pixel.
        init, pointwise: arguments of `convert`.
    """

    kind: ClassVar[str] = "model"
    name: str
    reason: str
    model: str
    task: str
    batch: int = 8
    size: int = 128
    classes: int = 1000
    init: str = "dct2"
    pointwise: bool = False

    def quick(self) -> ModelCase:
        """Returns the case with two small images: BatchNorm needs more than one number per channel."""
        return dataclasses.replace(self, batch=2, size=64)


Case = LayerCase | ModelCase
_AnyCase = TypeVar("_AnyCase", LayerCase, Case)

_STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and size of ResNet's stages at 224 pixels


def _layer(prefix: str, reason: str, channels: int, size: int, suffix: str = "", **fields: Any) -> LayerCase:
    return LayerCase(f"{prefix}-{channels}@{size}{suffix}", reason, channels, channels, size, **fields)


def _dense_index() -> Iterator[LayerCase]:
    for channels, size in _STAGES:
        yield _layer("index-3x3", "ResNet's stages: what converting a network computes most", channels, size)
    yield _layer("index-3x3", "few channels, large image: a U-Net's last stage, bound by memory", 32, 128, batch=4)
    yield _layer("index-3x3", "very few channels, many small images: fixed costs show", 16, 32, batch=32)
    yield _layer("index-3x3-stride2", "between stages: the output is a quarter of the input", 128, 56, stride=2)
    for kernel in (5, 7):
        for channels, size in _STAGES[:3]:
            reason = "larger filters: dense work grows with K^2, an index bank's hardly"
            yield _layer(f"index-{kernel}x{kernel}", reason, channels, size, kernel=kernel)
    reason = "the first layer of a ResNet: three channels, much to compute for the functions, little to add"
    yield LayerCase("stem-7x7-stride2-3to64@224", reason, 3, 64, 224, kernel=7, stride=2)


def _sparse_index() -> Iterator[LayerCase]:
    for channels, size in ((64, 56), (96, 40), (128, 28), (256, 14), (512, 7)):
        for density in (0.2, 0.1, 0.05, 0.01):
            reason = "zero filters are skipped: where does that begin to pay"
            yield _layer("index-3x3", reason, channels, size, f"-density{density}", density=density)
    for density in (0.1, 0.01):
        reason = "large filters, most of them zero"
        yield _layer("index-5x5", reason, 128, 28, f"-density{density}", kernel=5, density=density)


def _low_rank() -> Iterator[LayerCase]:
    for rank, kernel in ((4, 3), (2, 3), (4, 5)):
        reason = f"every filter mixes {rank} functions: {rank}/{kernel**2} of the dense work"
        for channels, size in _STAGES:
            if (kernel, channels) != (5, 512):
                yield _layer(f"lowrank-{rank}of{kernel**2}", reason, channels, size, rank=rank, kernel=kernel)
        yield _layer(f"lowrank-{rank}of{kernel**2}", reason, 32, 128, rank=rank, kernel=kernel, batch=4)
    yield _layer("lowrank-pca-4of9", "functions that are not separable, as those of compressed filters", 128, 28,
                 rank=4, pca=True)  # fmt: skip


def _hadamard() -> Iterator[LayerCase]:
    fast: dict[str, Any] = {"init": "hadamard"}
    for channels, size in _STAGES:
        yield _layer("hadamard-3x3", "ResNet's stages: is memory the bound", channels, size, **fast)
    yield _layer("hadamard-3x3", "few channels, large image: hardly anything to save", 32, 128, batch=4, **fast)
    yield _layer(
        "hadamard-3x3-stride2", "between stages: the output is a quarter of the input", 128, 56, stride=2, **fast
    )
    for kernel in (5, 7):
        reason = "larger filters: dense work grows with K^2, a fast transform's with K"
        yield _layer(f"hadamard-{kernel}x{kernel}", reason, 128, 28, kernel=kernel, **fast)
    yield _layer("hadamard-3x3", "mixed precision", 128, 28, "-bfloat16", dtype=torch.bfloat16, **fast)


def _others() -> Iterator[LayerCase]:
    for kernel in (3, 5):
        for channels, size in ((144, 56), (240, 28), (672, 14)):
            reason = "EfficientNet-B0: one filter a channel, bound by memory"
            yield _layer(f"depthwise-{kernel}x{kernel}", reason, channels, size, kernel=kernel, groups=channels)
    yield _layer("index-3x3", "mixed precision", 128, 28, "-bfloat16", dtype=torch.bfloat16)
    yield _layer("grouped-3x3", "ResNeXt: eight channels a group", 256, 14, groups=32)


def _models() -> Iterator[ModelCase]:
    reasons = {
        "resnet18": "all 3x3: the most that a whole network can gain",
        "resnet50": "bottlenecks: half of the work is in learned 1x1 layers",
        "densenet121": "many channels in, 32 out",
        "efficientnet_b0": "depthwise",
    }
    for task in ("training", "inference"):
        for name, reason in reasons.items():
            yield ModelCase(f"{name}-{task}", reason, f"torchvision:{name}", task)
        yield ModelCase(f"unet-{task}", "large images and plain 3x3: the decoder", "smp:unet/resnet18", task, classes=2)
    for name in ("resnet18-pointwise", *list(reasons)[1:]):
        model, _, mixed = name.partition("-")
        case = ModelCase(f"{name}-auto-training", "as the default fixes it", f"torchvision:{model}", "training")
        yield dataclasses.replace(case, init="auto", pointwise=bool(mixed))


LAYER_CASES = (*_dense_index(), *_sparse_index(), *_low_rank(), *_hadamard(), *_others())
MODEL_CASES = tuple(_models())


def select(pattern: str = "*", kind: str = "all") -> list[Case]:
    """Returns the cases of a kind whose name matches a glob.

    Args:
        pattern: globs, separated by commas.
        kind: "layer", "model" or "all".

    Raises:
        ValueError: there is no such kind, or a glob matches none of its cases.

    Examples:
        >>> [case.name for case in select("index-3x3-64@56,resnet18-*ing")]
        ['index-3x3-64@56', 'resnet18-training', 'resnet18-pointwise-auto-training']
    """
    kinds: dict[str, Sequence[Case]] = {"layer": LAYER_CASES, "model": MODEL_CASES, "all": LAYER_CASES + MODEL_CASES}
    if kind not in kinds:
        raise ValueError(f"kind must be layer, model or all, got {kind!r}")
    return matching(kinds[kind], pattern)


def matching(cases: Sequence[_AnyCase], pattern: str) -> list[_AnyCase]:
    """Returns those of `cases` whose name matches one of the globs in `pattern`, which commas separate.

    Raises:
        ValueError: a glob matches no case.
    """
    globs = [glob.strip() for glob in pattern.split(",")]
    for glob in globs:
        if not any(fnmatchcase(case.name, glob) for case in cases):
            unknown = unknown_name("case", glob, [case.name for case in cases])
            raise ValueError(f"{unknown}; `explainfix bench --list` lists all")
    return [case for case in cases if any(fnmatchcase(case.name, glob) for glob in globs)]
