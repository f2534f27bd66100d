"""Lists the layers that are measured on a GPU, each with its name and the reason why it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from explainfix_ext.commands.benchmarks.cases import LayerCase

BATCH = 64
_STAGES = ((128, 28), (256, 14), (512, 7), (64, 56))  # channels and size of ResNet's stages at 224 pixels
_DEPTHWISE = ((144, 56), (240, 28), (672, 14))  # of EfficientNet-B0


def _case(name: str, reason: str, channels: int, size: int, suffix: str = "", **fields: Any) -> LayerCase:
    fields = {"batch": BATCH, "dtype": torch.bfloat16, **fields}
    return LayerCase(f"{name}-{channels}@{size}{suffix}", reason, channels, channels, size, **fields)


def _low_rank() -> Iterator[LayerCase]:
    for rank, kernel in ((4, 3), (2, 3), (4, 5)):
        reason = f"on tensor cores {rank}/{kernel**2} of the dense work: the kernel that can win everywhere"
        for channels, size in _STAGES:
            yield _case(f"lowrank-{rank}of{kernel**2}", reason, channels, size, rank=rank, kernel=kernel)
    for channels, size in ((128, 56), (256, 28)):
        reason = "between stages: the output is a quarter of the input"
        yield _case("lowrank-4of9-stride2", reason, channels, size, rank=4, stride=2)
    for channels, size in ((128, 28), (256, 14)):
        reason = "single precision, with TF32 off (no tensor cores) and on"
        yield _case("lowrank-4of9", reason, channels, size, "-float32", rank=4, dtype=torch.float32)
    yield _case("lowrank-4of9", "the other half precision", 256, 14, "-float16", rank=4, dtype=torch.float16)


def _index() -> Iterator[LayerCase]:
    for density in (0.1, 0.01):
        for channels, size in ((256, 14), (512, 7), (128, 28)):
            reason = "zero filters are skipped, which dense tensor cores cannot"
            yield _case("index-3x3", reason, channels, size, f"-density{density}", density=density)
    reason = "the default bank: every filter one function; additions against tensor cores"
    yield _case("index-3x3", reason, 256, 14)


def _depthwise() -> Iterator[LayerCase]:
    for kernel in (3, 5):
        for channels, size in _DEPTHWISE:
            reason = "one filter a channel: bound by memory, and libraries are far from the bandwidth"
            yield _case(f"depthwise-{kernel}x{kernel}", reason, channels, size, kernel=kernel, groups=channels)
    yield _case("depthwise-3x3-stride2", "between stages", 144, 56, stride=2, groups=144)


CUDA_CASES = (*_low_rank(), *_index(), *_depthwise())
