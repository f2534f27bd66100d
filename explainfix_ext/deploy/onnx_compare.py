"""This module compares an ONNX file, as ONNX Runtime runs it, with the model that it was made of."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from .compare import Comparison, compare
from .onnx_export import library


def compare_in_onnxruntime(model: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> Comparison:
    """Compares the outputs for `example` and for a batch of twice as many images; `compare` says how.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library())
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())

    def run(x: Tensor) -> list[Any]:
        return [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})]

    return compare(_OfOneSize(model, example.shape[1:]), run, (example,))


class _OfOneSize(nn.Module):
    """Is a model that takes images of one size only, as its ONNX file does."""

    def __init__(self, model: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.model, self.shape = model.eval(), shape

    def forward(self, x: Tensor) -> Any:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x must be of {self.shape} an image, got {x.shape}")
        return self.model(x)
