"""What a user sees first: imports, status, examples of docstrings that run, and the build's refusals."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.documented import MODULES
from support.paths import ROOT

import explainfix_ext as efx
from explainfix_ext.filters import registry


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | env, cwd=ROOT, check=False
    )
    return done.stdout + done.stderr


def test_status_names_the_binaries_that_loaded() -> None:
    text = str(efx.status())
    assert torch.__version__ in text
    if os.environ.get("EXPLAINFIX_EXT") == "0":
        assert "turned off by EXPLAINFIX_EXT=0" in text
    else:
        assert efx.status().cpu_kernels.startswith("_C."), text
        assert torch._C._dispatch_has_kernel_for_dispatch_key("explainfix::fixed_conv2d", "CPU")


def test_without_binaries_the_reference_runs() -> None:
    code = (
        "import torch, explainfix_ext as efx; print(efx.status());"
        "print(efx.FixedConv2d(3, 4, 3, seed=0)(torch.randn(1, 3, 8, 8)).shape)"
    )
    text = python(code, EXPLAINFIX_EXT="0")
    assert "pure torch (turned off by EXPLAINFIX_EXT=0)" in text
    assert "torch.Size([1, 4, 6, 6])" in text


def test_core_needs_torch_and_numpy_only() -> None:
    code = (
        "import sys; import explainfix_ext;"
        "extra = {'torchvision', 'timm', 'rich', 'typer', 'matplotlib', 'mlxtend', 'torchmetrics', 'safetensors'};"
        "print('extras:', sorted(extra & set(sys.modules)))"
    )
    assert "extras: []" in python(code)


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))  # one registers an initialisation
    torchvision = pytest.importorskip("torchvision", reason="torchvision (extra `models`) is not installed")
    scope = {name: getattr(efx, name) for name in efx.__all__}
    scope |= {"copy": copy, "math": math, "torch": torch, "nn": torch.nn, "F": F, "torchvision": torchvision}
    if module.startswith("commands.webpage."):  # these start from what the command has found
        from explainfix_ext.commands.webpage.run import explain
        from explainfix_ext.commands.webpage.subject import ExplainConfig

        scope |= {"explain": explain, "ExplainConfig": ExplainConfig}
    tested = importlib.import_module(f"explainfix_ext.{module}")
    failed, ran = doctest.testmod(tested, extraglobs=scope, optionflags=doctest.ELLIPSIS)
    assert failed == 0
    assert ran > 0


def setup_py(**env: str) -> str:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        capture_output=True,
        text=True,
        env=os.environ | env,
        cwd=ROOT,
        check=False,
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


def test_cuda_code_is_for_the_gpus_here_or_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    monkeypatch.setenv("EXPLAINFIX_EXT", "0")
    monkeypatch.chdir(ROOT)
    gpu_archs = runpy.run_path("setup.py")["gpu_archs"]
    cards: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: cards[i])
    assert gpu_archs(torch, (13, 0)) == "7.5;8.0;9.0;10.0;12.0+PTX"
    assert gpu_archs(torch, (12, 6)) == "7.5;8.0;9.0+PTX"  # has no code for Blackwell: it gets what runs there
    cards += [(9, 0), (7, 5), (9, 0), (6, 1)]
    assert gpu_archs(torch, (13, 0)) == "7.5;9.0"
    cards[:] = [(6, 1)]
    assert gpu_archs(torch, (12, 6)) == "7.5;8.0;9.0+PTX"


@pytest.mark.slow
def test_build_says_why_there_is_no_cuda(tmp_path: Path) -> None:
    no_nvcc = {"CUDA_HOME": str(tmp_path), "CUDA_PATH": str(tmp_path), "PATH": str(tmp_path)}
    if not os.path.exists("/usr/local/cuda/bin/nvcc"):
        assert "building CPU kernels only: no nvcc was found" in setup_py(EXPLAINFIX_CUDA="auto", **no_nvcc)
        assert setup_py(EXPLAINFIX_CUDA="1", **no_nvcc).startswith("1 ")
        assert "EXPLAINFIX_CUDA=1, but no nvcc was found" in setup_py(EXPLAINFIX_CUDA="1", **no_nvcc)
    assert "must be auto, 0 or 1, got 'yes'" in setup_py(EXPLAINFIX_CUDA="yes")
    assert "building CPU kernels only: EXPLAINFIX_CUDA=0" in setup_py(EXPLAINFIX_CUDA="0")
    hidden = tmp_path / "torch.py"
    hidden.write_text("raise ImportError")
    assert "needs torch in this environment" in setup_py(PYTHONPATH=str(tmp_path))
