"""Runs trained networks faster: `optimize_for_inference` in PyTorch, `explainfix_ext.onnx` in ONNX Runtime."""

from .optimize import Optimized as Optimized
from .optimize import optimize_for_inference as optimize_for_inference
