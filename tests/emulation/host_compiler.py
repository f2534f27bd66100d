"""Compiles device kernels for the host.

EXPLAINFIX_EMULATION=plain (default), asan or tsan: undefined behaviour always aborts; asan and tsan need their run-time
library loaded first (test_sanitizers.py runs the tests so).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SANITIZERS = {
    "plain": ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-static-libubsan"],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
}
BUILD = os.environ.get("EXPLAINFIX_EMULATION", "plain")


def compile_for_host(name: str, folder: Path) -> ModuleType:
    """The module in <name>.cpp, called host_<name>."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 (extra `test`) is not installed")
    target = folder / f"host_{name}.so"
    include = [CSRC, HERE, sysconfig.get_path("include"), pybind11.get_include()]
    command = [
        "g++",
        "-O1",
        "-g",
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


def barriers(kernel: str) -> list[int]:
    """The lines of csrc/kernels/<kernel> that hold a barrier."""
    lines = (CSRC / "kernels" / kernel).read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if "__syncthreads();" in line]
