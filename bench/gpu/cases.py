"""Lists the layers that are measured on a GPU, each with its name and the reason why it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from explainfix_ext.commands.benchmarks.cases import LayerCase

BATCH = 64
_STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and size of ResNet's stages at 224 pixels
_DEPTHWISE = ((144, 56), (240, 28), (672, 14))  # of EfficientNet-B0


def _case(name: str, reason: str, channels: int, size: int, suffix: str = "", **fields: Any) -> LayerCase:
    fields = {"batch": BATCH, "dtype": torch.bfloat16, **fields}
    return LayerCase(f"{name}-{channels}@{size}{suffix}", reason, channels, channels, size, **fields)


def _hadamard() -> Iterator[LayerCase]:
    fast: dict[str, Any] = {"init": "hadamard"}
    for channels, size in _STAGES:
        yield _case("hadamard-3x3", "what the default fixes a network's layers to", channels, size, **fast)
    for channels, size in ((128, 56), (256, 28), (512, 14)):
        reason = "between stages: the output is a quarter of the input"
        yield _case("hadamard-3x3-stride2", reason, channels, size, stride=2, **fast)
    yield _case("hadamard-3x3", "the widest that there is a kernel for", 1024, 14, batch=16, **fast)
    for channels, size in _STAGES[::2]:
        yield _case("hadamard-3x3", "single precision", channels, size, "-float32", dtype=torch.float32, **fast)
    yield _case("hadamard-3x3", "the other half precision", 256, 14, "-float16", dtype=torch.float16, **fast)


def _depthwise() -> Iterator[LayerCase]:
    for kernel in (3, 5):
        for channels, size in _DEPTHWISE:
            reason = "one filter a channel: bound by memory, and libraries are far from the bandwidth"
            yield _case(f"depthwise-{kernel}x{kernel}", reason, channels, size, kernel=kernel, groups=channels)
    yield _case("depthwise-3x3-stride2", "between stages", 144, 56, stride=2, groups=144)


CUDA_CASES = (*_hadamard(), *_depthwise())
