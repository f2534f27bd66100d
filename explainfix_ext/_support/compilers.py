"""This module finds the compilers that build the kernels. setup.py runs it alone, before this package is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

OLDEST_GPU = (7, 5)  # compute capability: any nvcc here makes its code, and the kernels need nothing newer


def find_nvcc() -> tuple[str, tuple[int, int]] | None:
    """Returns the root of the CUDA toolkit and its version. `nvcc` may be a wrapper script: it is asked."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.path.join(home, "bin", "nvcc") for home in homes if home] + [shutil.which("nvcc")]
    for nvcc in candidates:
        if not nvcc or not os.path.exists(nvcc):
            continue
        release = re.search(r"release (\d+)\.(\d+)", _run(nvcc, "--version").stdout)
        top = re.search(r"TOP=(\S+)", _run(nvcc, "-dryrun", "-x", "cu", "-E", os.devnull).stderr)
        root = os.path.realpath(top[1] if top else os.path.dirname(os.path.dirname(nvcc)))
        if release and os.path.exists(os.path.join(root, "include", "cuda_runtime.h")):
            return root, (int(release[1]), int(release[2]))
    return None


def why_no_cuda(torch_cuda: str | None, nvcc: tuple[int, int] | None) -> str | None:
    """Returns why CUDA kernels cannot be built, and what to do; None where they can.

    Arguments:
        torch_cuda: the CUDA that torch was built for, None if that is the CPU only.
        nvcc: its version, None if there is none.
    """
    if torch_cuda is None:
        return "this torch was not built for CUDA: install one that is (https://pytorch.org)"
    major = torch_cuda.split(".")[0]
    if nvcc is None:
        return f"no nvcc was found: install the CUDA {major} toolkit, or set CUDA_HOME to its folder"
    if int(major) != nvcc[0]:
        return f"nvcc is of CUDA {nvcc[0]}.{nvcc[1]}, torch of {torch_cuda}: set CUDA_HOME to a CUDA {major} toolkit"
    return None


def find_cxx() -> str | None:
    """Returns the name and version of the C++ compiler, or None."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    return _run(compiler, "--version").stdout.partition("\n")[0] or compiler if compiler else None


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)
