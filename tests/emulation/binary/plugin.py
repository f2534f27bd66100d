"""`pytest -p emulation.binary.plugin`: torch.cuda has a card that is not there, and explainfix_ext its kernels.

It needs the variables of environment.py, and EXPLAINFIX_CUDA_BINARY: "nvcc" for the binary that setup.py built, whose
kernels are found by name in the library of the launchers and run in the emulation; or "launchers" for that library
itself, where there is no nvcc. Operators of torch run on the CPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from emulation.launchers.library import Card, Emulated, build
from torch import Tensor
from torch.utils._pytree import tree_map


def on_host(t: Tensor) -> Tensor:
    """Returns a CPU tensor in the same memory."""
    storage = t.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    raw = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=t.dtype).set_(raw, t.storage_offset(), t.shape, t.stride())


def on_cpu(op: Any) -> Callable[..., Any]:
    """Returns an operator for CUDA tensors that calls the CPU's, in place where that works in place."""

    def run(*args: Any, **kwargs: Any) -> Any:
        pairs: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the first, a CPU tensor: (that, the card's)

        def down(value: Any) -> Any:
            if isinstance(value, torch.device):
                return torch.device("cpu")
            if not isinstance(value, Tensor) or value.device.type != "cuda":
                return value
            host = on_host(value)
            pairs[id(host)] = host, value
            return host

        def up(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in pairs:
                return pairs[id(value)][1]
            new = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
            on_host(new).copy_(value)
            return new

        args, kwargs = tree_map(down, (args, kwargs))
        result = op(*args, **kwargs)
        for host, value in pairs.values():
            if host.shape != value.shape:  # the `out` of an operator, which found its size
                value.resize_(host.shape).as_strided_(host.shape, host.stride())
                on_host(value).copy_(host)
        return tree_map(up, result)

    return run


def copy_(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    (on_host(to) if to.is_cuda else to).copy_(on_host(source) if source.is_cuda else source)
    return to


# What only makes or views memory, which the fake runtime has; and what is made of other operators, but not on a CPU.
OWN = ("empty", "as_strided", "view", "_reshape_alias", "unfold", "resize_", "set_", "record_stream", "is_pinned")
MORE = ("convolution", "convolution_backward", "native_batch_norm", "native_batch_norm_backward")


def run_aten_on_cpu() -> torch.library.Library:
    """Replaces all of torch's operators for CUDA tensors. They stay so while the result lives."""
    library = torch.library.Library("aten", "IMPL")
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    for name in {*(name[6:] for name in registered if name.startswith("aten::")), *MORE}:
        op = name.partition(".")[0]
        if not op.startswith(OWN) and op not in ("copy_", "_local_scalar_dense"):
            library.impl(name, on_cpu(getattr(torch.ops.aten, op)), "CUDA")  # finds its overload: 1 comes for a tensor
    library.impl("copy_", copy_, "CUDA")
    library.impl("_local_scalar_dense", lambda t: on_host(t).item(), "CUDA")
    return library


def address(function: Any) -> ctypes.c_void_p:
    return ctypes.cast(function, ctypes.c_void_p)


def load() -> Emulated:
    """Makes the kernels ready, once in a process."""
    path = build()
    os.environ["EXPLAINFIX_EMULATED_KEY"] = "CUDA"
    if os.environ["EXPLAINFIX_CUDA_BINARY"] == "nvcc":
        os.environ["EXPLAINFIX_EMULATED_KEY"] = "PrivateUse1"  # nobody's: the binary has the operators
    from explainfix_ext.ops import binaries

    torch.ops.load_library(str(path))
    emulated = Emulated(path)
    if os.environ["EXPLAINFIX_CUDA_BINARY"] == "nvcc":
        assert str(binaries.LOADED["cuda"]).startswith("_C_cu"), binaries.REASON
        launch, allow = (
            ctypes.cast(f, ctypes.c_void_p) for f in (emulated.library.emulated_launch, emulated.library.emulated_allow)
        )
        ctypes.CDLL(None).fake_kernels(launch, allow)
    else:
        binaries.LOADED["cuda"] = path.name
    return emulated


CARD = Card(*map(int, os.environ["EXPLAINFIX_CARD"].split(",")))
EMULATED = load()
ATEN = run_aten_on_cpu()
torch.backends.cudnn.enabled = False
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def emulated() -> Emulated:
    """The launches that it returns are the test's own."""
    EMULATED.set_card(CARD)
    EMULATED.launches()
    return EMULATED
