"""The library for ONNX Runtime, built with AddressSanitizer and UndefinedBehaviorSanitizer: whatever a file holds,
nothing is read or written out of bounds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import CSRC, ROOT
from support.sanitizers import preloaded

pytest.importorskip("onnx", reason='needs the extra "test"')
pytest.importorskip("onnxruntime", reason='needs the extra "test"')
pytestmark = pytest.mark.slow

# Run in a Python that has the sanitizer's runtime.
SCRIPT = """
import sys
from support import onnx_session
onnx_session.library = lambda: sys.argv[1]
from deploy import test_onnx_operators as t
"""
RUNS = {
    "random geometry": """
for op in t.OPS:
    for seed in range(60):
        t.test_random_geometry(op, seed)
""",
    "malformed words": """
t.test_no_word_of_a_file_is_trusted()
""",
    "malformed nodes": """
for name in t.MALFORMED:
    t.test_malformed_nodes_are_refused(name)
for op in t.OPS:
    t.test_malformed_inputs_are_refused(op)
""",
}


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sanitizer") / "asan.so"
    include = [f"-I{CSRC}", f"-I{ROOT / 'third_party/onnxruntime'}", "-DEXPLAINFIX_ONNX"]
    flags = ["-O1", "-g1", "-std=c++17", "-fPIC", "-shared", "-fno-omit-frame-pointer", "-w"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]
    folders = ("onnx", "cpu/driver", "cpu/tile")
    sources = sorted(str(path) for folder in folders for path in (CSRC / folder).glob("*.cpp"))
    subprocess.run(["g++", *flags, *include, *sources, "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("name", RUNS)
def test_sanitizers_find_nothing(name: str, sanitized: Path) -> None:
    environment = os.environ | preloaded("asan") | {"PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", SCRIPT + RUNS[name], str(sanitized)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
