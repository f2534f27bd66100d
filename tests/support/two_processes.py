"""Two processes of one torch.distributed group, over gloo, that end in time whatever happens."""

from __future__ import annotations

import importlib.util
import inspect
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_two(function: Callable[..., None], folder: Path, *arguments: Any, limit: float = 120) -> None:
    """Calls `function(rank, folder, *arguments)` in each. `folder` is where they meet, and empty.

    The processes load the function from its file: the name that pytest gives a test module means nothing to them.

    Raises:
        ProcessRaisedException: one of them failed; its traceback is in the message.
        TimeoutError: they took more than `limit` seconds.
    """
    processes = mp.spawn(
        _call, (inspect.getfile(function), function.__name__, folder, limit, arguments), nprocs=2, join=False
    )
    end = time.monotonic() + limit
    try:
        while not processes.join(timeout=1):
            if time.monotonic() > end:
                raise TimeoutError(f"{function.__name__} took more than {limit} s in two processes")
    finally:
        for process in processes.processes:
            process.kill()


def _call(rank: int, file: str, name: str, folder: Path, limit: float, arguments: tuple) -> None:
    torch.set_num_threads(1)
    meet, patience = f"file://{folder}/meet", timedelta(seconds=limit)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=patience)
    spec = importlib.util.spec_from_file_location("test_in_two_processes", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(rank, folder, *arguments)
    dist.barrier()
    os._exit(0)  # in one of many runs on a busy machine, gloo's threads aborted the process while it was torn down


def states_of_two(train: Callable[..., None], folder: Path, ways: Sequence[Any]) -> list[dict[str, Any]]:
    """Lets two processes run `train(rank, own_folder, way)` for each way; returns what each wrote into state.pt."""
    states = []
    for way in ways:
        own = folder / str(way)  # the two meet in it
        own.mkdir()
        run_two(train, own, way)
        states.append(torch.load(own / "state.pt", weights_only=False))
    return states
