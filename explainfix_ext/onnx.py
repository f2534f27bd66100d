"""This module writes networks for ONNX Runtime, and offers the library of operators that runs them there fast."""

from .deploy.onnx_export import export, library

__all__ = ["export", "library"]
