"""Fixtures of all tests: seeded randomness, devices, a command line to call, and which slow tests CI runs."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.paths import SHARED

if "PYTEST_XDIST_WORKER" in os.environ:  # tests that run side by side take a thread each, as what they start does
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

os.environ.setdefault("EXPLAINFIX_TUNE", "0")  # on a GPU, tests run the kernels that they name


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread_where_tests_fork(request: pytest.FixtureRequest) -> Iterator[None]:
    """A forked child has none of the threads of its parent's pool, and would wait for them for ever."""
    threads = torch.get_num_threads()
    if "emulation" in request.path.parts:
        torch.set_num_threads(1)
    yield
    if "emulation" in request.path.parts:
        torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(capsys, monkeypatch, tmp_path) -> Callable[[str], tuple[int, str, str]]:
    """Run `explainfix` with a line of arguments in an empty folder -> (exit code, stdout, stderr)."""
    from explainfix_ext import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main sets its own

    def call(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(shlex.split(line))
        return (exit_.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here: real data for tests is optional")
    return SHARED


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the parallel workers
        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU the `cuda` tests skip; without -m the slow ones do (`-m slow` or `-m ""` runs them)."""
    no_gpu = pytest.mark.skip(reason="no GPU here")
    slow = pytest.mark.skip(reason='slow: run with -m ""')
    asked = "-m" in config.invocation_params.args or any(str(a).startswith("-m") for a in config.invocation_params.args)
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if "slow" in item.keywords and not asked:
            item.add_marker(slow)
