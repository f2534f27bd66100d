"""Runs an ONNX file by ONNX Runtime with our library of operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explainfix_ext.onnx import library


def session_of(model: Path | bytes, threads: int = 2, with_library: bool = True) -> Any:
    """A session of two threads, so that work is shared, which writes no warnings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if with_library:
        options.register_custom_ops_library(library())
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: Path | bytes | Any, *inputs: Tensor, **options: Any) -> Tensor:
    """The first output for these inputs."""
    session = session_of(model, **options) if isinstance(model, (Path, bytes)) else model
    feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(np.array(session.run(None, feeds)[0]))
