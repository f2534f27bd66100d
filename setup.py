"""Builds the kernels. Everything else about the package is in pyproject.toml.

CPU kernels are always built. EXPLAINFIX_CUDA says whether CUDA kernels are, too:
  auto (default)  for the GPUs that torch sees here, if there is an nvcc of torch's CUDA major
  1               in any case, or an error: for TORCH_CUDA_ARCH_LIST, else the GPUs here, else all generations
  0               never
EXPLAINFIX_EXT=0: no compiled code at all; the package then runs on pure torch.
"""

import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

from setuptools import Extension, setup

ONNX_LIBRARY = "explainfix_ext.deploy._onnx"
STABLE_ABI = "0x020a000000000000"  # torch 2.10: one binary serves every later version
compilers = SimpleNamespace(**runpy.run_path("explainfix_ext/_support/compilers.py"))


def usable_gpus(torch):
    """The compute capabilities of the GPUs here that the kernels can run on."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sorted({gpu for gpu in map(torch.cuda.get_device_capability, range(count)) if gpu >= compilers.OLDEST_GPU})


def gpu_archs(gpus, nvcc_version):
    """Of the GPUs here, else of all that this nvcc has code for, one a generation (Turing, Ampere and Ada, Hopper,
    Blackwell twice): code made when it is first run would take minutes there."""
    everywhere = "7.5;8.0;9.0;10.0;12.0+PTX" if nvcc_version >= (12, 8) else "7.5;8.0;9.0+PTX"
    return ";".join(f"{major}.{minor}" for major, minor in gpus) or everywhere


def onnx_library(flags):
    """The CPU kernels once more, without torch: what `explainfix_ext.onnx.library()` finds, no Python module."""
    sources = [path for folder in ("onnx", "cpu/driver") for path in Path("csrc", folder).glob("*.cpp")]
    folders = [str(Path(folder).resolve()) for folder in ("csrc", "third_party/onnxruntime")]
    return Extension(
        ONNX_LIBRARY,
        sorted(map(str, sources)),
        include_dirs=folders,
        define_macros=[("EXPLAINFIX_ONNX", None)],
        extra_compile_args={"cxx": [*flags, "-std=c++17"]},
        extra_link_args=["-Wl,-s"],
        py_limited_api=True,
    )


def with_shared_tiles(build_ext):
    """`build_ext` where the library for ONNX Runtime takes the compiled cpu/tile of `_C`: it is the same for any host,
    and most of the time that a build takes. What else the two compile alike has folders of its own."""

    class Build(build_ext):
        def build_extension(self, ext):
            folder = self.build_temp
            if ext.name == ONNX_LIBRARY:
                tiles = sorted(Path("csrc/cpu/tile").glob("*.cpp"))
                ext.extra_objects = [str(Path(folder, tile).with_suffix(".o")) for tile in tiles]
                self.build_temp = str(Path(folder, "onnx"))
            super().build_extension(ext)
            self.build_temp = folder

    return Build


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

    gpus, nvcc, reason = usable_gpus(torch), None, None
    if wanted == "0":
        reason = "EXPLAINFIX_CUDA=0"
    elif wanted == "auto" and not gpus:
        reason = "torch sees no GPU for them here (EXPLAINFIX_CUDA=1 builds CUDA kernels all the same)"
    else:
        nvcc = compilers.find_nvcc()
        reason = compilers.why_no_cuda(torch.version.cuda, nvcc and nvcc[1])
    if reason and wanted == "1":
        sys.exit(f"explainfix_ext: EXPLAINFIX_CUDA=1, but {reason}")
    macros = [("TORCH_TARGET_VERSION", STABLE_ABI)]
    flags = ["-O3", "-g0", "-fvisibility=hidden", "-Wall"]
    common = {"py_limited_api": True, "extra_link_args": ["-Wl,-s"], "include_dirs": [str(Path("csrc").resolve())]}
    sources = sorted(map(str, Path("csrc/cpu").rglob("*.cpp")))
    args = {"cxx": flags}
    modules = [CppExtension("explainfix_ext.ops._C", sources, define_macros=macros, extra_compile_args=args, **common)]
    modules.append(onnx_library(flags))
    commands = {"build_ext": with_shared_tiles(BuildExtension)}
    if reason:
        print(f"explainfix_ext: building CPU kernels only: {reason}", file=sys.stderr)
        return modules, commands
    os.environ["CUDA_HOME"] = nvcc[0]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", gpu_archs(gpus, nvcc[1]))
    # CUDA_HOME is read when cpp_extension is imported: tell it, where it was imported before this line.
    sys.modules["torch.utils.cpp_extension"].CUDA_HOME = nvcc[0]
    sources = sorted(map(str, Path("csrc/cuda").rglob("*.cu")))
    args = {"cxx": flags, "nvcc": ["-O3", "-lineinfo", "-Xptxas", "-v", "-Xfatbin", "-compress-all"]}
    macros = [*macros, ("USE_CUDA", None)]
    name = f"explainfix_ext.ops._C_cu{nvcc[1][0]}"
    modules.append(CUDAExtension(name, sources, define_macros=macros, extra_compile_args=args, **common))
    return modules, commands


modules, commands = extensions()
setup(
    ext_modules=modules,
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if modules else {},
)
