"""Compiles CUDA kernels for the host, and helps tests to run them. All tests of this folder import from here.

EXPLAINFIX_EMULATION=plain (default), asan or tsan: plain aborts at undefined behaviour; asan and tsan need their
run-time library loaded first (test_sanitizers.py runs the tests so).
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import re
import signal
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SANITIZERS = {
    "plain": ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-static-libubsan"],
    "asan": ["-fsanitize=address"],
    "tsan": ["-fsanitize=thread"],
}
BUILD = os.environ.get("EXPLAINFIX_EMULATION", "plain")


def compile_for_host(name: str, folder: Path) -> ModuleType:
    """Compiles <name>.cpp and returns it as the module host_<name>."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 (extra `test`) is not installed")
    target = folder / f"host_{name}.so"
    include = [CSRC, HERE, sysconfig.get_path("include"), pybind11.get_include()]
    command = [
        "g++",
        "-O1",
        "-g1",  # lines, for reports of sanitizers; -g took a seventh longer to compile
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-unknown-pragmas",
    ]
    command += SANITIZERS[BUILD] + [f"-I{path}" for path in include]
    subprocess.run([*command, str(HERE / f"{name}.cpp"), "-o", str(target)], check=True)
    spec = importlib.util.spec_from_file_location(f"host_{name}", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bits(t: Tensor) -> np.ndarray:
    """Returns the tensor's memory as int16 or float32, for numpy knows no bfloat16."""
    return t.numpy() if t.dtype == torch.float32 else t.view(torch.int16).numpy()


def goes_wrong(run: Callable[[], None]) -> bool:
    """Whether `run` raises, crashes or hangs. It runs in a child process: a kernel with a race may write anywhere."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # it would report the crash that the test is about
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        signal.alarm(100)
        try:
            run()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] != 0


def barriers(kernel: str) -> list[int]:
    """Finds the barriers of csrc/cuda/device/<kernel>, of blocks and of warps: their lines."""
    text = (CSRC / "cuda" / "device" / kernel).read_text()
    found = re.compile(r"__sync(threads|warp)\(\);")
    return [number for number, line in enumerate(text.splitlines(), 1) if found.search(line)]
