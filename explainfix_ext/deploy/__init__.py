"""Trained networks, made ready to run fast: `optimize_for_inference`, and files for ONNX Runtime."""
