"""check_card runs every family of CUDA kernels on a card before the package relies on them, and turns wrong ones off.

It happens once for each card, driver, torch and build, in a subprocess (card_families.py), because an illegal access
leaves a process without its GPU. The operators of a family that fails or crashes run in pure torch from then on.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from explainfix_ext.ops import binaries, max_pool, passes, reference

from .card_cache import recall, remember

# Family -> its operators, and the pure torch that takes their place.
OPERATORS: dict[str, dict[str, Callable[..., Any]]] = {
    "fixed_conv2d": {
        "fixed_conv2d": reference.fixed_conv2d,
        "fixed_conv2d_input_grad": reference.fixed_conv2d_input_grad,
    },
    "hadamard_conv2d": {
        "hadamard_conv2d": reference.hadamard_conv2d,
        "hadamard_conv2d_input_grad": reference.hadamard_conv2d_input_grad,
    },
    "passes": passes.REFERENCES,
    "max_pool": max_pool.REFERENCES,
}
_CHILD = (sys.executable, "-c", "from explainfix_ext.ops.plans.card_families import main; main()")
_SECONDS = 600  # a family that takes longer hangs; a card without code of its own compiles for minutes


@functools.cache
def check_card(device: torch.device) -> None:
    """Turns off the families that are wrong on a card; once in a process. Ranks only read what is known."""
    if binaries.LOADED["cuda"] is None or os.environ.get("EXPLAINFIX_TUNE") == "0":
        return
    wrong = recall(device, "wrong")
    if wrong is None and not (dist.is_available() and dist.is_initialized()):
        wrong = find_wrong(str(device), _CHILD)
        if wrong is not None:
            remember(device, "wrong", wrong)
    for family, why in (wrong or {}).items():
        turn_off(family, why)


def find_wrong(device: str, child: Sequence[str]) -> dict[str, str] | None:
    """Runs the families in a subprocess: those that are wrong, and why; None if no subprocess could use the device.

    A process that fails is done for; a new one runs the families after the one that failed.
    """
    wrong: dict[str, str] = {}
    left = list(OPERATORS)
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "EXPLAINFIX_TUNE": "0", "PYTHONPATH": path}
    while left:
        try:
            done = subprocess.run([*child, device, *left], env=environment, capture_output=True, timeout=_SECONDS)
            output, end = done.stdout, f"the process ended with {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output, end = error.stdout or b"", f"it took longer than {_SECONDS} s"
        except OSError:
            return None
        ready, *lines = output.decode(errors="replace").splitlines() or [""]
        if ready != "ready":
            return None
        right = [line.partition(" ")[2] for line in lines if line.startswith("right ")]
        left = left[len(right) :]
        if left:
            said = lines[len(right)].partition(" ")[2] if len(lines) > len(right) else ""
            wrong[left.pop(0)] = said or end
    return wrong


def turn_off(family: str, why: str, device: str = "CUDA") -> None:
    """Puts pure torch in the place of a family's kernels, with a warning."""
    binaries.OFF.add(family)
    for name, plain in OPERATORS[family].items():
        torch.library.impl(f"explainfix::{name}", device, plain)
    said = f"wrong here and off ({why}): pure torch runs instead; please report this"
    if "was not built for" in why:  # csrc/cuda/launch/launch.h says so, and what to do
        said = f"off, and pure torch runs instead: {why}"
    warnings.warn(f"the {device} kernels of {family} are {said}", stacklevel=2)
