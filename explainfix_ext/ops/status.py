"""status says what runs here, and how to get what is missing; `explainfix status` prints it."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from explainfix_ext._support import compilers
from explainfix_ext._support.text import first_line

from . import binaries


@dataclass(frozen=True)
class Status:
    """A Status holds versions, the binaries that are loaded (or why not), and the hardware; `print(status())` shows it.

    Attributes:
        explainfix_ext: version.
        torch: version.
        cpu_kernels: name of the binary that is loaded, or "pure torch" and the reason.
        cuda_kernels: the same for GPUs.
        cpu: the instruction set that torch uses, its threads, and the instruction set that our kernels use.
        gpu: names of the GPUs, or "none".
        torch_cuda: the CUDA that torch was built for, or "none".
        compilers: the C++ compiler and nvcc that would build the kernels.
        advice: what to do about each thing that is missing, a line each.

    Examples:
        >>> sorted(status().as_dict())[:4]
        ['advice', 'compilers', 'cpu', 'cpu_kernels']
    """

    explainfix_ext: str
    torch: str
    cpu_kernels: str
    cuda_kernels: str
    cpu: str
    gpu: str
    torch_cuda: str = "none"
    compilers: str = ""
    advice: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the attributes as a dict for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        facts = self.as_dict()
        advice = facts.pop("advice") or ("none",)
        rows = [(name.replace("_kernels", " kernels"), text) for name, text in facts.items()]
        return "\n".join(f"{name:>14}  {text}" for name, text in [*rows, *(("advice", line) for line in advice)])


def _kernels(device: str) -> str:
    if binaries.LOADED[device] is None:
        return f"pure torch ({binaries.REASON[device]})"
    off = f", but {', '.join(sorted(binaries.OFF))} in pure torch" if device == "cuda" and binaries.OFF else ""
    return f"{binaries.LOADED[device]}{off}"


def _gpus() -> list[str]:
    """Returns the names of the GPUs: torch's, or where it can use none, the driver's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice says what torch warns of here
        if torch.cuda.is_available():
            return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.replace(", ", ", driver ") for line in done.stdout.splitlines() if done.returncode == 0]


def _build(variables: str = "") -> str:
    """Returns the command that builds the kernels, with the folder of the source if the package runs from there."""
    source = Path(__file__).resolve().parents[2]
    if (source / "setup.py").exists():
        return f"{variables}pip install --no-build-isolation -e {shlex.quote(str(source))}"
    return (
        f"pip install 'setuptools>=77' ninja && {variables}pip install --no-build-isolation . (in the source's folder)"
    )


def _advice(gpus: list[str], cxx: str | None, nvcc: tuple[int, int] | None) -> tuple[str, ...]:
    """Returns a line for each thing that is missing, with what to do."""
    if os.environ.get("EXPLAINFIX_EXT") == "0":
        return ("kernels are off, since EXPLAINFIX_EXT=0 is set: unset it",)
    if binaries.torch_version() < binaries.TORCH_NEEDED:
        return ("the kernels need a later torch: pip install 'torch>=2.10'",)
    no_cxx = None if cxx else "install a C++ compiler (apt install g++; or set CXX)"
    lines = []
    if binaries.LOADED["cpu"] is None:
        lines.append("CPU kernels: " + ", then ".join(filter(None, (no_cxx, _build()))))
    usable = torch.cuda.is_available()
    if gpus and torch.version.cuda and not usable:
        lines.append(
            f"torch cannot use the GPU{_cuda_error()}: update the driver, or install a torch for an older CUDA"
        )
    elif usable and max(map(torch.cuda.get_device_capability, range(len(gpus)))) < compilers.OLDEST_GPU:
        lines.append("CUDA kernels: they need a GPU of compute capability 7.5 or later; pure torch runs on this one")
    elif gpus and binaries.LOADED["cuda"] is None:
        missing = list(filter(None, (no_cxx, compilers.why_no_cuda(torch.version.cuda, nvcc))))
        lines.append("CUDA kernels: " + ", then ".join([*missing, _build("EXPLAINFIX_CUDA=1 ")]))
    elif torch.version.cuda and binaries.LOADED["cuda"] is None:
        lines.append(f"no GPU is here; to build CUDA kernels all the same: {_build('EXPLAINFIX_CUDA=1 ')}")
    return tuple(lines)


def _cuda_error() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f" ({first_line(error).partition('. ')[0]})"
    return ""


def status() -> Status:
    """Finds out what runs here.

    Examples:
        >>> status().torch == torch.__version__
        True
        >>> print(status())  # doctest: +SKIP
        explainfix_ext  0.2.0
                 torch  2.15.0+cu132
           cpu kernels  _C.abi3.so
    """
    gpus, cxx, nvcc = _gpus(), compilers.find_cxx(), compilers.find_nvcc()
    nvcc_found = f"nvcc {nvcc[1][0]}.{nvcc[1][1]} in {nvcc[0]}" if nvcc else "no nvcc"
    torch_isa = torch.backends.cpu.get_cpu_capability()
    return Status(
        explainfix_ext=version("explainfix_ext"),
        torch=torch.__version__,
        cpu_kernels=_kernels("cpu"),
        cuda_kernels=_kernels("cuda"),
        cpu=f"{torch_isa}, {torch.get_num_threads()} threads, kernels for {binaries.cpu_isa()}",
        gpu="; ".join(gpus) or "none",
        torch_cuda=torch.version.cuda or "none",
        compilers=f"{cxx or 'no C++ compiler'}; {nvcc_found}",
        advice=_advice(gpus, cxx, nvcc and nvcc[1]),
    )
