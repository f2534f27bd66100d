"""This module describes the machine that a figure was measured on: its hardware and its versions."""

from __future__ import annotations

import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_PACKAGES = ("torch", "numpy", "torchvision", "timm", "segmentation_models_pytorch", "torchmetrics")


def hardware(device: torch.device) -> dict[str, Any]:
    """Returns the names of CPU and GPU, the number of cores and of torch's threads, and the memory in GiB."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_physical_bytes() / 2**30, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def memory_bytes() -> int:
    """Returns how much memory this process may have: the machine's, or less under `ulimit -v`."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return _physical_bytes() if limit == resource.RLIM_INFINITY else min(limit, _physical_bytes())


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this package, and of the libraries it trains with that are installed."""
    found = {"python": platform.python_version()}
    for name in ("explainfix_ext", *_PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
