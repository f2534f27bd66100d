"""This module loads the compiled kernels, and remembers why one is missing.

`import explainfix_ext` calls `load()` last, after the operators are defined. It loads up to two files beside this one:
`_C.*so`, the CPU kernels, with code for every instruction set (each call uses the best that the CPU has); and
`_C_cu<major>.*so`, the CUDA kernels, if torch is built for that CUDA major. If a file is missing or does not fit this
torch, or EXPLAINFIX_EXT=0 is set, the operators run their pure-torch reference. Nothing is loaded later.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from . import fixed_conv2d as conv_ops

TORCH_NEEDED = (2, 10)  # the stable ABI that the binaries are built against

LOADED: dict[str, str | None] = {"cpu": None, "cuda": None}  # device -> name of the file that is loaded, or None
REASON: dict[str, str] = {}  # device -> why none is
OFF: set[str] = set()  # families of CUDA kernels that plans/card_check.py has found wrong on this card
ISAS = ("plain", "avx2", "avx512")  # instruction sets, in the order of csrc's levels of cpu_isa


def _load(device: str, name: str) -> None:
    files = sorted(Path(__file__).parent.glob(f"{name}.*so"))
    if not files:
        REASON[device] = f"{name} was not built"
        return
    try:
        torch.ops.load_library(str(files[0]))
        LOADED[device] = files[0].name
    except OSError as e:
        REASON[device] = f"{files[0].name} does not load into torch {torch.__version__}: {e.__cause__ or e}"


def torch_version() -> tuple[int, ...]:
    """Returns major and minor."""
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def load() -> None:
    """Loads the binaries that fit this torch. A CUDA binary of another CUDA major could load, and then misbehave."""
    if os.environ.get("EXPLAINFIX_EXT") == "0":
        REASON.update(dict.fromkeys(LOADED, "turned off by EXPLAINFIX_EXT=0"))
    elif torch_version() < TORCH_NEEDED:
        REASON.update(dict.fromkeys(LOADED, f"torch must be >= 2.10, got {torch.__version__}"))
    else:
        _load("cpu", "_C")
        if torch.version.cuda is None:
            REASON["cuda"] = f"torch {torch.__version__} was not built for CUDA"
        else:
            _load("cuda", f"_C_cu{torch.version.cuda.split('.')[0]}")


def cpu_isa() -> str:
    """Returns the instruction set that the CPU kernels use: "avx512", "avx2", or "plain", which every CPU has."""
    return ISAS[conv_ops.cpu_isa(torch.empty(0), -1)]


def cpu_has_amx() -> bool:
    """Tells whether torch multiplies bfloat16 matrices in hardware; never where our kernels are limited to less."""
    return cpu_isa() == "avx512" and getattr(torch.cpu, "_is_amx_tile_supported", bool)()


def set_cpu_isa(name: str | None) -> str:
    """Limits the CPU kernels of this process to an instruction set (None: the best), and returns the one in use.

    This is for tests and benchmarks: layers that exist keep the plans that they chose before.

    Raises:
        ValueError: there is no instruction set of this name.
    """
    if name is not None and name not in ISAS:
        raise ValueError(f"isa must be one of {', '.join(ISAS)}, got {name!r}")
    return ISAS[conv_ops.cpu_isa(torch.empty(0), len(ISAS) - 1 if name is None else ISAS.index(name))]
