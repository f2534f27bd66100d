"""Compiles device kernels for the host."""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def compile_for_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModuleType]:
    """(name of a .cpp file here) -> the module in it, called host_<name>; undefined behaviour aborts it."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 (extra `test`) is not installed")

    def compiled(name: str) -> ModuleType:
        target = tmp_path_factory.mktemp("emulation") / f"host_{name}.so"
        include = [HERE.parents[1] / "csrc", sysconfig.get_path("include"), pybind11.get_include()]
        command = ["g++", "-O1", "-g", "-std=c++17", "-shared", "-fPIC", "-Wall", "-fsanitize=undefined"]
        command += ["-fno-sanitize-recover=all", "-static-libubsan"]
        command += [f"-I{path}" for path in include] + [str(HERE / f"{name}.cpp"), "-o", str(target)]
        subprocess.run(command, check=True)
        spec = importlib.util.spec_from_file_location(f"host_{name}", target)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return compiled
