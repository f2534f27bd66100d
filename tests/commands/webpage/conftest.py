"""Fixtures of the tests of the page: tiny models among the presets, two trained networks, and the command to call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.page import WEIRD, Flat, Untraceable
from support.tiny_run import Tiny, train

from explainfix_ext.commands.webpage.explained import Explained
from explainfix_ext.commands.webpage.run import explain
from explainfix_ext.commands.webpage.subject import ExplainConfig
from explainfix_ext.training import models


@pytest.fixture(autouse=True)
def _models(monkeypatch):
    for name, model in (("tiny", Tiny), ("odd", Untraceable), ("flat", Flat), (WEIRD, Tiny)):
        monkeypatch.setitem(models.PRESETS, name, model)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", Tiny)
        return {
            init: train(tmp_path_factory.mktemp("trained") / WEIRD, init=init, classes=2 if init == "learned" else 3)
            for init in ("learned", "dct2")
        }


@pytest.fixture
def run_explain(run: Callable) -> Callable[[str], tuple[int, str, str]]:
    """Runs `explainfix explain` with a line of arguments, as `run` of all tests does."""
    return lambda line: run(f"explain {line}")


@pytest.fixture(scope="session")
def binary(tmp_path_factory) -> Explained:
    """A trained network, which tells two classes apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", Tiny)
        path = train(tmp_path_factory.mktemp("binary"), classes=2, init="dct2")
        return explain(ExplainConfig(model=str(path), batches=2, device="cpu"), "")
