"""Compiles device kernels for the host."""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def compile_for_host(name: str, folder: Path) -> ModuleType:
    """The module in <name>.cpp, called host_<name>; undefined behaviour aborts it."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 (extra `test`) is not installed")
    target = folder / f"host_{name}.so"
    include = [HERE.parents[1] / "csrc", sysconfig.get_path("include"), pybind11.get_include()]
    command = ["g++", "-O1", "-g", "-std=c++17", "-shared", "-fPIC", "-Wall", "-fsanitize=undefined"]
    command += ["-fno-sanitize-recover=all", "-static-libubsan"]
    command += [f"-I{path}" for path in include] + [str(HERE / f"{name}.cpp"), "-o", str(target)]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location(f"host_{name}", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
