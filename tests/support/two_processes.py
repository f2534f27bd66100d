"""Two processes of one torch.distributed group, over gloo, that end in time whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_two(function: Callable[..., None], folder: Path, *arguments: Any, limit: float = 120) -> None:
    """Call `function(rank, folder, *arguments)` in each. `folder` is where they meet, and empty.

    Raises:
        ProcessRaisedException: one of them failed; its traceback is in the message.
        TimeoutError: they took more than `limit` seconds.
    """
    processes = mp.spawn(_call, (function, folder, limit, arguments), nprocs=2, join=False)
    end = time.monotonic() + limit
    try:
        while not processes.join(timeout=1):
            if time.monotonic() > end:
                raise TimeoutError(f"{function.__name__} took more than {limit} s in two processes")
    finally:
        for process in processes.processes:
            process.kill()


def _call(rank: int, function: Callable[..., None], folder: Path, limit: float, arguments: tuple) -> None:
    torch.set_num_threads(1)
    meet, patience = f"file://{folder}/meet", timedelta(seconds=limit)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=patience)
    function(rank, folder, *arguments)
    dist.destroy_process_group()
