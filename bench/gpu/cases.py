"""Lists the layers that are measured on a GPU, each with its name and the reason why it is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from explainfix_ext.commands.benchmarks.cases import LayerCase

BATCH = 64
_DEPTHWISE = ((144, 56), (240, 28), (672, 14))  # of EfficientNet-B0


def _case(name: str, reason: str, channels: int, size: int, suffix: str = "", **fields: Any) -> LayerCase:
    fields = {"batch": BATCH, "dtype": torch.bfloat16, **fields}
    return LayerCase(f"{name}-{channels}@{size}{suffix}", reason, channels, channels, size, **fields)


def _depthwise() -> Iterator[LayerCase]:
    for kernel in (3, 5):
        for channels, size in _DEPTHWISE:
            reason = "one filter a channel: bound by memory, and libraries are far from the bandwidth"
            yield _case(f"depthwise-{kernel}x{kernel}", reason, channels, size, kernel=kernel, groups=channels)
    yield _case("depthwise-3x3-stride2", "between stages", 144, 56, stride=2, groups=144)


CUDA_CASES = (*_depthwise(),)
