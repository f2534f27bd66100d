"""setup.py builds what the machine can run and says why; the source distribution holds every file that it should."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT


def setup_py(*arguments: str, **env: str) -> str:
    command = [sys.executable, "setup.py", *(arguments or ["--version"])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env, cwd=ROOT, check=False)
    return f"{done.returncode} {done.stdout}{done.stderr}"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py."""
    monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
    monkeypatch.setenv("EXPLAINFIX_EXT", "0")
    monkeypatch.chdir(ROOT)
    names = runpy.run_path("setup.py")
    monkeypatch.delenv("EXPLAINFIX_EXT")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.delenv("EXPLAINFIX_CUDA", raising=False)
    return names


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The compute capabilities of the GPUs that torch says are here."""
    cards: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: cards[i])
    return cards


def test_cuda_code_is_for_the_gpus_here_or_for_all(build: dict[str, Any], cards: list[tuple[int, int]]) -> None:
    gpus, archs = build["usable_gpus"], build["gpu_archs"]
    assert archs(gpus(torch), (13, 0)) == "7.5;8.0;9.0;10.0;12.0+PTX"
    assert archs(gpus(torch), (12, 6)) == "7.5;8.0;9.0+PTX"  # has no code for Blackwell: it gets what runs there
    cards += [(9, 0), (7, 5), (9, 0), (6, 1)]
    assert archs(gpus(torch), (13, 0)) == "7.5;9.0"
    cards[:] = [(6, 1)]
    assert gpus(torch) == []


NVCC = ("/opt/cuda", (13, 0))
NO_GPU = "CPU kernels only: torch sees no GPU for them here (EXPLAINFIX_CUDA=1 builds CUDA kernels all the same)"


@pytest.mark.parametrize(
    ("wanted", "capabilities", "nvcc", "built", "said"),
    [
        (None, [], NVCC, ["_C", "_onnx"], NO_GPU),
        (None, [(6, 1)], NVCC, ["_C", "_onnx"], NO_GPU),
        (None, [(9, 0)], NVCC, ["_C", "_onnx", "_C_cu13 for 9.0"], ""),
        (
            None,
            [(9, 0)],
            None,
            ["_C", "_onnx"],
            "building CPU kernels only: no nvcc was found: install the CUDA 13 toolkit",
        ),
        (None, [(9, 0)], ("/opt/cuda", (12, 8)), ["_C", "_onnx"], "set CUDA_HOME to a CUDA 13 toolkit"),
        ("1", [], NVCC, ["_C", "_onnx", "_C_cu13 for 7.5;8.0;9.0;10.0;12.0+PTX"], ""),
        ("1", [(8, 0)], NVCC, ["_C", "_onnx", "_C_cu13 for 8.0"], ""),
        ("0", [(9, 0)], NVCC, ["_C", "_onnx"], "building CPU kernels only: EXPLAINFIX_CUDA=0"),
    ],
)
def test_what_is_built(
    build: dict[str, Any],
    cards: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wanted: str | None,
    capabilities: list[tuple[int, int]],
    nvcc: tuple[str, tuple[int, int]] | None,
    built: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(build["compilers"], "find_nvcc", lambda: nvcc)
    monkeypatch.setenv("CUDA_HOME", os.environ.get("CUDA_HOME", ""))  # which extensions() sets: put back afterwards
    cpp_extension = pytest.importorskip("torch.utils.cpp_extension")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "/opt/cuda")
    monkeypatch.setattr(cpp_extension, "CUDAExtension", lambda name, sources, **_: _Named(name))
    if wanted:
        monkeypatch.setenv("EXPLAINFIX_CUDA", wanted)
    cards += capabilities
    modules, _ = build["extensions"]()
    names = [module.name.rpartition(".")[2] for module in modules]
    if len(names) == 3:
        names[2] += f" for {os.environ.pop('TORCH_CUDA_ARCH_LIST')}"
    assert names == built
    lines = [line for line in capsys.readouterr().err.splitlines() if "explainfix_ext" in line]  # torch warns, too
    assert said in "".join(lines)
    assert len(lines) == (1 if said else 0)


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


def test_cuda_that_was_asked_for_and_cannot_be_built_is_an_error(
    build: dict[str, Any], cards: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build["compilers"], "find_nvcc", lambda: None)
    monkeypatch.setenv("EXPLAINFIX_CUDA", "1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(SystemExit, match=r"EXPLAINFIX_CUDA=1, but no nvcc was found: install the CUDA 13 toolkit"):
        build["extensions"]()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit, match=r"EXPLAINFIX_CUDA=1, but this torch was not built for CUDA"):
        build["extensions"]()
    monkeypatch.setenv("EXPLAINFIX_CUDA", "yes")
    with pytest.raises(SystemExit, match=r"must be auto, 0 or 1, got 'yes'"):
        build["extensions"]()


def test_without_torch_the_build_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    assert "needs torch in this environment" in setup_py(PYTHONPATH=str(tmp_path))


def test_the_source_distribution_has_every_file(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    here = set(subprocess.run(git, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines())
    here = {file for file in here if (ROOT / file).exists()}  # not those that were deleted and not committed yet
    assert setup_py("-q", "egg_info", "--egg-base", str(tmp_path), EXPLAINFIX_EXT="0").startswith("0")
    packed = set((tmp_path / "explainfix_ext.egg-info" / "SOURCES.txt").read_text().splitlines())
    packed = {file for file in packed if ".egg-info/" not in file}
    left_out = {file for file in here - packed if not file.startswith((".github/", ".git", ".pre-commit"))}
    assert left_out == set()
    assert packed - here == set()
