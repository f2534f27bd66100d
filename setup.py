"""Builds the kernels. Everything else about the package is in pyproject.toml.

EXPLAINFIX_CUDA=auto (default): CUDA kernels if nvcc and torch's CUDA agree; 1: an error if not; 0: CPU kernels only.
EXPLAINFIX_EXT=0: no compiled code at all; the package then runs on pure torch.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

STABLE_ABI = "0x020a000000000000"  # torch 2.10: one binary serves every later version
OLDEST_GPU = (7, 5)  # whose code any nvcc here makes, and which the kernels need nothing newer than


def find_nvcc():
    """(toolkit's root, (major, minor)), or None. `nvcc` on PATH may be a wrapper script, so ask it for its root."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.path.join(home, "bin", "nvcc") for home in homes if home] + [shutil.which("nvcc")]
    for nvcc in candidates:
        if not nvcc or not os.path.exists(nvcc):
            continue
        release = re.search(r"release (\d+)\.(\d+)", run(nvcc, "--version").stdout)
        top = re.search(r"TOP=(\S+)", run(nvcc, "-dryrun", "-x", "cu", "-E", os.devnull).stderr)
        root = os.path.realpath(top[1] if top else os.path.dirname(os.path.dirname(nvcc)))
        if release and os.path.exists(os.path.join(root, "include", "cuda_runtime.h")):
            return root, (int(release[1]), int(release[2]))
    return None


def run(*command):
    return subprocess.run(command, capture_output=True, text=True)


def why_no_cuda(torch, nvcc):
    if nvcc is None:
        return "no nvcc was found (set CUDA_HOME)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    if int(torch.version.cuda.split(".")[0]) != nvcc[1][0]:
        return f"nvcc {nvcc[1][0]}.{nvcc[1][1]} and torch's CUDA {torch.version.cuda} differ in their major version"
    return None


def gpu_archs(torch, nvcc_version):
    """Of the GPUs here that the kernels are for, else of all that this nvcc has code for, one a generation (Turing,
    Ampere and Ada, Hopper, Blackwell twice): code made when it is first run would take minutes there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = {torch.cuda.get_device_capability(i) for i in range(count)}
    everywhere = "7.5;8.0;9.0;10.0;12.0+PTX" if nvcc_version >= (12, 8) else "7.5;8.0;9.0+PTX"
    return ";".join(f"{major}.{minor}" for major, minor in sorted(found) if (major, minor) >= OLDEST_GPU) or everywhere


def extensions():
    """([extension modules], {command classes})"""
    if os.environ.get("EXPLAINFIX_EXT") == "0":
        return [], {}
    wanted = os.environ.get("EXPLAINFIX_CUDA", "auto").lower()
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"explainfix_ext: EXPLAINFIX_CUDA must be auto, 0 or 1, got {wanted!r}")
    try:
        import torch
    except ImportError:
        sys.exit(
            "explainfix_ext: building the kernels needs torch in this environment:\n"
            "  pip install torch 'setuptools>=77' ninja && pip install --no-build-isolation .\n"
            "or, without kernels: EXPLAINFIX_EXT=0 pip install ."
        )
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    nvcc = find_nvcc() if wanted != "0" else None
    reason = "EXPLAINFIX_CUDA=0" if wanted == "0" else why_no_cuda(torch, nvcc)
    if reason and wanted == "1":
        sys.exit(f"explainfix_ext: EXPLAINFIX_CUDA=1, but {reason}")
    macros = [("TORCH_TARGET_VERSION", STABLE_ABI)]
    flags = ["-O3", "-g0", "-fvisibility=hidden", "-Wall"]
    common = {"py_limited_api": True, "extra_link_args": ["-Wl,-s"], "include_dirs": [str(Path("csrc").resolve())]}
    sources = sorted(map(str, Path("csrc/cpu").rglob("*.cpp")))
    args = {"cxx": flags}
    modules = [CppExtension("explainfix_ext.ops._C", sources, define_macros=macros, extra_compile_args=args, **common)]
    if reason:
        print(f"explainfix_ext: building CPU kernels only: {reason}", file=sys.stderr)
        return modules, {"build_ext": BuildExtension}
    os.environ["CUDA_HOME"] = nvcc[0]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", gpu_archs(torch, nvcc[1]))
    # CUDA_HOME is read when cpp_extension is imported: tell it, where it was imported before this line.
    sys.modules["torch.utils.cpp_extension"].CUDA_HOME = nvcc[0]
    sources = sorted(map(str, Path("csrc/cuda").rglob("*.cu")))
    args = {"cxx": flags, "nvcc": ["-O3", "-lineinfo", "-Xptxas", "-v", "-Xfatbin", "-compress-all"]}
    macros = [*macros, ("USE_CUDA", None)]
    name = f"explainfix_ext.ops._C_cu{nvcc[1][0]}"
    modules.append(CUDAExtension(name, sources, define_macros=macros, extra_compile_args=args, **common))
    return modules, {"build_ext": BuildExtension}


modules, commands = extensions()
setup(
    ext_modules=modules,
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if modules else {},
)
