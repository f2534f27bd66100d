"""status says what is missing and what to do, on machines that are not here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT

from explainfix_ext._support import compilers
from explainfix_ext.ops import binaries, status

BUILD = f"pip install --no-build-isolation -e {ROOT}"
TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"


class Machine:
    """A machine that lacks nothing: a GPU, both binaries, compilers. Tests take away."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        patch.delenv("EXPLAINFIX_EXT", raising=False)
        patch.setattr(torch, "__version__", "2.14.1+cu130")
        self.torch_cuda("13.0")
        self.gpus((9, 0))
        self.binaries(cpu="_C.abi3.so", cuda="_C_cu13.abi3.so")
        self.compilers("c++ 12.2.0", ("/opt/cuda-13.0", (13, 0)))

    def torch_cuda(self, version: str | None) -> None:
        self.patch.setattr(torch.version, "cuda", version)

    def gpus(self, *capabilities: tuple[int, int]) -> None:
        """What torch can use."""
        self.patch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        self.patch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        self.patch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
        self.patch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
        self.nvidia_smi("")

    def nvidia_smi(self, says: str) -> None:
        """What the driver sees."""
        done = subprocess.CompletedProcess([], 0, stdout=says)
        self.patch.setattr(status.shutil, "which", lambda name: f"/usr/bin/{name}" if says else None)
        self.patch.setattr(status.subprocess, "run", lambda *_, **__: done)

    def binaries(self, cpu: str | None, cuda: str | None) -> None:
        self.patch.setattr(binaries, "LOADED", {"cpu": cpu, "cuda": cuda})
        self.patch.setattr(binaries, "REASON", {"cpu": "_C was not built", "cuda": "_C_cu13 was not built"})

    def compilers(self, cxx: str | None, nvcc: tuple[str, tuple[int, int]] | None) -> None:
        self.patch.setattr(compilers, "find_cxx", lambda: cxx)
        self.patch.setattr(compilers, "find_nvcc", lambda: nvcc)

    def advice(self) -> tuple[str, ...]:
        return status.status().advice


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_nothing_is_missing(machine: Machine) -> None:
    found = status.status()
    assert found.advice == ()
    assert str(found).splitlines()[-3:] == [
        "    torch_cuda  13.0",
        "     compilers  c++ 12.2.0; nvcc 13.0 in /opt/cuda-13.0",
        "        advice  none",
    ]


def test_kernels_that_are_turned_off(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.binaries(None, None)
    monkeypatch.setenv("EXPLAINFIX_EXT", "0")
    assert machine.advice() == ("kernels are off, since EXPLAINFIX_EXT=0 is set: unset it",)


def test_a_torch_before_the_stable_abi(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.binaries(None, None)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    assert machine.advice() == ("the kernels need a later torch: pip install 'torch>=2.10'",)


def test_only_pure_torch_runs(machine: Machine) -> None:
    machine.binaries(None, "_C_cu13.abi3.so")
    assert machine.advice() == (f"CPU kernels: {BUILD}",)
    machine.compilers(None, None)
    assert machine.advice() == (f"CPU kernels: install a C++ compiler (apt install g++; or set CXX), then {BUILD}",)


def test_a_wheel_without_cuda_on_a_machine_with_a_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.binaries("_C.abi3.so", None)
    assert machine.advice() == (f"CUDA kernels: EXPLAINFIX_CUDA=1 {BUILD}",)
    monkeypatch.setattr(status, "__file__", "/usr/lib/python3/site-packages/explainfix_ext/ops/status.py")
    assert machine.advice() == (
        "CUDA kernels: pip install 'setuptools>=77' ninja && EXPLAINFIX_CUDA=1 pip install --no-build-isolation . "
        "(in the source's folder)",
    )


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "missing"),
    [
        ("13.0", None, "no nvcc was found: install the CUDA 13 toolkit, or set CUDA_HOME to its folder"),
        ("13.0", (12, 4), "nvcc is of CUDA 12.4, torch of 13.0: set CUDA_HOME to a CUDA 13 toolkit"),
        (None, (13, 0), "this torch was not built for CUDA: install one that is (https://pytorch.org)"),
    ],
)
def test_cuda_kernels_cannot_be_built_yet(
    machine: Machine, torch_cuda: str | None, nvcc: tuple[int, int] | None, missing: str
) -> None:
    machine.torch_cuda(torch_cuda)
    machine.binaries("_C.abi3.so", None)
    machine.compilers("c++", nvcc and ("/opt/cuda", nvcc))
    assert machine.advice() == (f"CUDA kernels: {missing}, then EXPLAINFIX_CUDA=1 {BUILD}",)


def test_no_gpu_needs_no_cuda_kernels(machine: Machine) -> None:
    machine.gpus()
    machine.binaries("_C.abi3.so", None)
    found = status.status()
    assert found.gpu == "none"
    assert found.advice == (f"no GPU is here; to build CUDA kernels all the same: EXPLAINFIX_CUDA=1 {BUILD}",)
    machine.torch_cuda(None)
    assert machine.advice() == ()


def test_a_driver_that_is_too_old(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError(TOO_OLD)

    machine.gpus()
    machine.nvidia_smi("NVIDIA A100, 470.82\nNVIDIA A100, 470.82\n")
    monkeypatch.setattr(torch.cuda, "init", refuse)
    found = status.status()
    assert found.gpu == "NVIDIA A100, driver 470.82; NVIDIA A100, driver 470.82"
    assert found.advice == (
        "torch cannot use the GPU (The NVIDIA driver on your system is too old (found version 11040)): "
        "update the driver, or install a torch for an older CUDA",
    )


def test_a_cpu_torch_beside_a_gpu(machine: Machine) -> None:
    machine.gpus()
    machine.torch_cuda(None)
    machine.binaries("_C.abi3.so", None)
    machine.nvidia_smi("NVIDIA A100, 570.1\n")
    assert [line.partition(" (https")[0] for line in machine.advice()] == [
        "CUDA kernels: this torch was not built for CUDA: install one that is"
    ]


def test_a_gpu_that_is_too_old(machine: Machine) -> None:
    machine.gpus((6, 1))
    machine.binaries("_C.abi3.so", None)
    assert machine.advice() == (
        "CUDA kernels: they need a GPU of compute capability 7.5 or later; pure torch runs on this one",
    )


def test_nvidia_smi_that_fails_is_no_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no such library")

    machine.gpus()
    machine.nvidia_smi("NVIDIA A100, 470.82\n")
    monkeypatch.setattr(status.subprocess, "run", fail)
    assert status.status().gpu == "none"


def test_a_status_has_what_it_had_and_goes_into_json() -> None:
    facts = status.status().as_dict()
    assert {"explainfix_ext", "torch", "cpu_kernels", "cuda_kernels", "cpu", "gpu"} < set(facts)
    assert json.loads(json.dumps(facts))["torch"] == torch.__version__


def test_nvcc_is_found_by_its_folder_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.1, V13.1.80'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert compilers.find_nvcc() != (str(tmp_path), (13, 1))  # half a toolkit: no headers
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    assert compilers.find_nvcc() == (str(tmp_path), (13, 1))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such"))
    assert compilers.find_cxx() is None
