"""What a user sees first: imports, status, examples of docstrings that run."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
import os
import subprocess
import sys

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
