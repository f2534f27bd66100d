"""`pytest -p emulation.launchers.plugin`: the tests run on the CUDA launchers, with CPU tensors.

The names of the kernels that were launched go to the file EXPLAINFIX_LAUNCHED, one a line, if that is set.
EXPLAINFIX_EMULATION=asan builds the launchers with AddressSanitizer, whose run-time library must be loaded first.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .library import CARDS, SANITIZERS, Emulated, build, load

EMULATED = load(build(SANITIZERS[os.environ.get("EXPLAINFIX_EMULATION", "plain")]))
LAUNCHED: set[str] = set()


@pytest.fixture(autouse=True)
def emulated(request: pytest.FixtureRequest) -> Emulated:
    """The launches that it returns are the test's own."""
    LAUNCHED.update(launch.kernel for launch in EMULATED.launches())
    EMULATED.set_card(CARDS["H100"])
    return EMULATED


def pytest_sessionfinish() -> None:
    LAUNCHED.update(launch.kernel for launch in EMULATED.launches())
    if "EXPLAINFIX_LAUNCHED" in os.environ:
        Path(os.environ["EXPLAINFIX_LAUNCHED"]).write_text("\n".join(sorted(LAUNCHED)))
