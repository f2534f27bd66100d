"""Wraps torch.distributed, so that the rest of training reads the same for one process and for many.

Under torchrun, its environment variables say how many there are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """Returns the number of this process, 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Returns how many processes train together, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def choose_device(name: str) -> torch.device:
    """Returns the device to train on, and makes a GPU the current one.

    Args:
        name: "cpu", "cuda", "cuda:N", or "auto", which is "cuda" if there is a GPU and "cpu" if not. Under torchrun
            "cuda" is the GPU of this process's local rank.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return device
    index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
    if index >= torch.cuda.device_count():
        there = f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        raise ValueError(f"device {name!r} is not there: {there}; take cpu or auto, or see `explainfix status`")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes of torchrun into a group, over nccl or gloo; does nothing without torchrun."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Returns what each rank passed, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def mean_over_ranks(value: Tensor) -> float:
    """Returns the mean of what each rank passed, a scalar; `value` is overwritten."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return float(value) / world_size()


def send_buffers(model: nn.Module) -> None:
    """Gives all ranks the running statistics of rank 0, so that they evaluate one and the same network."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
