"""Holds what bench_cuda_conv.py, bench_cuda_training.py and gpu_report.py share: measuring on a GPU.

cases (which layers) -> conv (how one is checked and timed), on device (clock, inputs, CUDA graphs), beside ceilings
(what the GPU can do at best) -> report (tables and JSON).
"""
