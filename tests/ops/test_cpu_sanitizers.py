"""The CPU ops built with AddressSanitizer and UndefinedBehaviorSanitizer: nothing is read or written out of bounds,
whatever the bank, the sizes and the words of `packed`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.paths import CSRC, ROOT
from support.sanitizers import preloaded

pytestmark = pytest.mark.slow

# Run in a Python that has the sanitizer's runtime. Each line is a test; the modules' own checks raise.
SCRIPT = """
import sys
import torch
from explainfix_ext.ops import binaries
torch.ops.load_library(sys.argv[1])
binaries.LOADED["cpu"] = "asan.so"
"""
RUNS = {
    "kernels": """
from ops import test_cpu_kernels as t
for family in t.FAMILIES:
    for seed in range(40):
        t.check(t.tile_case(family, seed))
""",
    "hadamard": """
from ops import test_hadamard_conv2d as t
for seed in range(150):
    t.check_case(seed, t.available_isas())
""",
    "many functions": """
from ops import test_many_functions as t
for kernel in (3, 5, 7):
    for functions in t.COUNTS:
        for basis in t.BASES:
            t.check_all_plans(basis, functions, kernel)
""",
    "malformed packed": """
from ops import test_checked_words as t
for isa in binaries.ISAS:
    if binaries.set_cpu_isa(isa) == isa:
        assert sum(t.run_malformed(seed, 100) for seed in range(60)) > 1000
""",
    "passes and pooling": """
from ops import test_max_pool as t, test_passes as p, test_checked_words as c
for memory_format in (torch.contiguous_format, torch.channels_last):
    c.test_places_outside_of_their_windows_are_refused(memory_format)
for dtype in t.DTYPES:
    t.test_maxima_and_gradients_are_torchs("op", dtype)
for dtype in p.DTYPES:
    p.test_kernels_equal_their_references(None, dtype)
    p.test_int8_is_off_by_half_a_step_at_most(None, dtype)
""",
    "inference": """
from ops import test_inference as t
for isa in binaries.ISAS:
    if binaries.set_cpu_isa(isa) == isa:
        for name in t.CASES:
            t.check_kernel(name, range(100))
for what in t.BAD:
    t.test_bad_arguments(what)
t.test_planes_without_pixels_and_images_without_channels()
""",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch_home = Path(torch.__file__).parent
    target = tmp_path_factory.mktemp("sanitizer") / "asan.so"
    include = [f"-I{CSRC}", f"-I{torch_home}/include", f"-I{torch_home}/include/torch/csrc/api/include"]
    flags = ["-O1", "-g1", "-std=c++17", "-fPIC", "-shared", "-fno-omit-frame-pointer", "-w"]
    # vptr: torch's classes come without their type information.
    flags += ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]
    abi = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    libraries = [f"-L{torch_home}/lib", "-ltorch_cpu", "-ltorch", "-lc10"]
    sources = sorted(map(str, (CSRC / "cpu").rglob("*.cpp")))
    subprocess.run(["g++", *flags, abi, *include, *sources, "-o", str(target), *libraries], check=True)
    return target


@pytest.mark.parametrize("name", RUNS)
def test_sanitizers_find_nothing(name: str, library: Path) -> None:
    environment = os.environ | preloaded("asan") | {"EXPLAINFIX_EXT": "0", "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", SCRIPT + RUNS[name], str(library)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
