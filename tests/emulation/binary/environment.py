"""The environment in which torch sees a card that is not there: cudart.cpp and a driver without functions, built with
g++ against the CUDA headers that come with triton."""

from __future__ import annotations

import fcntl
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import torch
from emulation.launchers.library import BUILD, Card

HERE = Path(__file__).parent
LAUNCHERS = HERE.parent / "launchers"


def environment(card: Card) -> dict[str, str]:
    """Returns the variables that a Python with that card starts with. Skips where torch or the headers are others."""
    folder, home = BUILD / "card", Path(torch.__file__).parent
    triton = importlib.util.find_spec("triton")
    if torch.version.cuda is None or triton is None or triton.origin is None:
        pytest.skip("torch is a CPU build, or comes without triton and its CUDA headers")
    include = Path(triton.origin).parent / "backends" / "nvidia" / "include"
    version = re.search(r"#define CUDART_VERSION\s+(\d+)", (include / "cuda_runtime_api.h").read_text())
    major = torch.version.cuda.split(".")[0]
    if version is None or int(version[1]) // 1000 != int(major) or major != "13":
        pytest.skip(f"the fake runtime is for CUDA 13, torch is for {torch.version.cuda}")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build_runtime(folder / "cudart.so", include)
        _build_driver(folder / "libcuda.so.1", home / "lib" / "libcaffe2_nvrtc.so")
    return {
        "LD_PRELOAD": str(folder / "cudart.so"),
        "LD_LIBRARY_PATH": str(folder),
        "EXPLAINFIX_CARD": ",".join(map(str, card)),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # so that what is freed is gone, and what is new is NaN
    }


def _build_runtime(target: Path, include: Path) -> None:
    flags = ["-O1", "-g1", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall"]
    source = HERE / "cudart.cpp"
    newest = max(path.stat().st_mtime for path in (source, LAUNCHERS / "card.h"))
    if not target.exists() or target.stat().st_mtime < newest:
        folders = [f"-I{include}", f"-I{LAUNCHERS}"]
        subprocess.run(["g++", *flags, *folders, str(source), "-o", str(target)], check=True)


def _build_driver(target: Path, user: Path) -> None:
    """Makes a libcuda.so.1 of all functions that torch's library asks for; each does nothing."""
    if target.exists():
        return
    symbols = subprocess.run(["nm", "-D", "--undefined-only", str(user)], capture_output=True, text=True, check=True)
    functions = "".join(f"int {name}(void) {{ return 0; }}\n" for name in re.findall(r" U (cu\w+)", symbols.stdout))
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(target), "-Wl,-soname,libcuda.so.1"]
    subprocess.run(command, input=functions, text=True, check=True)
