"""Compiles csrc/cuda, its launchers included, with g++; loads that for CPU tensors, and asks it what it launched.

`build` needs torch and g++, and neither a GPU nor nvcc; it writes to build/emulated. `load` is for a process of its
own: the operators of CPU tensors stay the launchers' until it ends, and `plan="auto"` chooses as on CUDA.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
BUILD = HERE.parents[2] / "build" / "emulated"
FLAGS = ["-O1", "-g1", "-std=c++17", "-fPIC", "-w", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
SANITIZERS = {"plain": [], "asan": ["-fsanitize=address", "-fno-omit-frame-pointer"]}


class Card(NamedTuple):
    """What launches depend on: multiprocessors, bytes of shared memory, compute capability."""

    processors: int
    shared_of_block: int  # that a kernel may ask for
    shared_of_processor: int
    major: int
    minor: int


CARDS = {
    "RTX 2080 Ti": Card(68, 64 * 1024, 64 * 1024, 7, 5),
    "A100": Card(108, 163 * 1024, 164 * 1024, 8, 0),
    "RTX 4090": Card(128, 99 * 1024, 100 * 1024, 8, 9),
    "H100": Card(132, 227 * 1024, 228 * 1024, 9, 0),
    "B200": Card(148, 227 * 1024, 228 * 1024, 10, 0),
}


class Launch(NamedTuple):
    """A launch of a kernel: numbers of blocks and of threads, bytes of dynamic shared memory."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


def build(flags: Sequence[str] = ()) -> Path:
    """Compiles the library, if sources, torch or flags are not those of the last time, and returns its path."""
    folder = BUILD / "-".join(["launchers", *(flag.strip("-") for flag in flags)])
    folder.mkdir(parents=True, exist_ok=True)
    target, made_of = folder / "launchers.so", folder / "made_of"
    now = _fingerprint()
    with open(folder / "lock", "w") as lock:  # processes that test side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made_of.exists() or made_of.read_text() != now:
            made_of.unlink(missing_ok=True)
            _compile(target, [*FLAGS, *flags])
            made_of.write_text(now)
    return target


def _fingerprint() -> str:
    """Returns a digest of all that the library is made of."""
    digest = hashlib.sha256(f"{torch.__version__} {FLAGS}".encode())
    for folder in (CSRC, HERE.parent):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cuh", ".cu", ".cpp")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _compile(target: Path, flags: list[str]) -> None:
    home = Path(torch.__file__).parent
    include = [HERE, HERE.parent, CSRC, home / "include", home / "include/torch/csrc/api/include"]
    flags += [f"-I{path}" for path in include]
    sources = [*sorted((CSRC / "cuda").rglob("*.cu")), *sorted(HERE.glob("*.cpp"))]
    objects = [target.parent / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, to: Path) -> None:
        subprocess.run(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(to)], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    link = ["g++", "-shared", *flags, *map(str, objects), "-Wl,-Bsymbolic", f"-L{home}/lib", "-ltorch_cpu", "-lc10"]
    subprocess.run([*link, "-o", str(target)], check=True)


def kernels_in(folder: str) -> set[str]:
    """Returns the names of the kernels in a folder of csrc/cuda/device."""
    text = "".join(path.read_text() for path in (CSRC / "cuda" / "device" / folder).glob("*.cuh"))
    return set(re.findall(r"\b(\w+_kernel)\(", text))


class Emulated:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.emulated_launches.restype = ctypes.c_char_p
        self.set_card(CARDS["H100"])

    def set_card(self, card: Card) -> None:
        self.library.emulated_card(*card)

    def seed(self, seed: int) -> None:
        """Seeds the order in which blocks, warps and lanes run."""
        self.library.emulated_seed(seed)

    def launches(self) -> list[Launch]:
        """Returns the launches since the last call."""
        found = []
        for line in self.library.emulated_launches().decode().splitlines():
            *numbers, kernel = line.split(" ", 7)
            x, y, z, threads_x, threads_y, threads_z, shared_bytes = map(int, numbers)
            found.append(Launch(kernel, (x, y, z), (threads_x, threads_y, threads_z), shared_bytes))
        return found


def load(path: Path) -> Emulated:
    """Makes the launchers the operators of CPU tensors, planned as on CUDA, for the rest of this process."""
    from explainfix_ext.ops import binaries, passes
    from explainfix_ext.ops.plans import cuda, plan

    os.environ["EXPLAINFIX_EMULATED_KEY"] = "CPU"
    torch.ops.load_library(str(path))
    binaries.LOADED["cuda"] = path.name
    binaries.ISAS = ("plain",)  # instruction sets are the CPU's: tests that try each have one
    binaries.set_cpu_isa(None)
    passes.WITHOUT_FLOAT64.add("cpu")
    plan.cpu = cuda
    plan.AUTO = 0  # is for the CPU's operator
    torch.set_num_threads(1)
    return Emulated(path)
