"""A model case: which networks are compared, wrong ones are not timed, and rows hold what was measured."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')

from explainfix_ext import FixedConv2d
from explainfix_ext.commands.benchmarks import models
from explainfix_ext.commands.benchmarks.cases import ModelCase

MODEL = ModelCase("tiny-training", "a test", "bottleneck", "training", batch=2, size=32, classes=10)


def test_rows_of_a_model():
    pytest.importorskip("timm", reason='needs the extra "demo"')
    rows = models.measure_model(MODEL, threads=1, rounds=2, least_seconds=0.0)
    assert [row["mode"] for row in rows] == ["learned", "frozen", "ours", "ours, density 0.1"]
    assert rows[0]["ratio"]["median"] == 1
    for row in rows:
        seconds = (rows[0]["seconds"]["median"], row["seconds"]["median"])
        assert row["ratio"]["median"] == pytest.approx(seconds[0] / seconds[1])
        assert 0 < row["error"] < models.TOLERANCE
        assert row["layout"] in ("NCHW", "channels_last")


def test_a_case_has_an_init_of_its_own():
    pytest.importorskip("timm", reason='needs the extra "demo"')
    case = ModelCase("t", "a test", "bottleneck", "training", 2, 32, 10, init="hadamard", pointwise=True)
    assert models.modes_of(case) == ["learned", "frozen", "ours"]
    fixed = [m for m in models.build_mode(case, "ours").modules() if isinstance(m, FixedConv2d)]
    assert all(layer.bank.hadamard is not None and layer.pointwise is not None for layer in fixed)


def test_networks_of_a_model_case():
    pytest.importorskip("timm", reason='needs the extra "demo"')
    built = {mode: models.build_mode(MODEL, mode) for mode in models.MODES["training"]}
    trainable = {mode: sum(p.requires_grad for p in model.parameters()) for mode, model in built.items()}
    assert trainable["learned"] > trainable["frozen"] == trainable["ours"]
    fixed = [m for m in built["ours, density 0.1"].modules() if isinstance(m, FixedConv2d)]
    assert [layer.bank.density for layer in fixed] == [1, *[pytest.approx(0.1, abs=0.01)] * 4]  # the stem is whole
    before = [p.clone() for p in built["ours"].parameters()]
    models.step(MODEL, built["ours"])()
    pairs = zip(before, built["ours"].parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


def test_wrong_networks_are_not_timed(monkeypatch):
    pytest.importorskip("timm", reason='needs the extra "demo"')
    right = FixedConv2d.forward
    monkeypatch.setattr(FixedConv2d, "forward", lambda self, x: right(self, x) * 1.1)
    with pytest.raises(FloatingPointError, match="tiny-training: ours computes something else"):
        models.measure_model(MODEL, threads=1, rounds=1, least_seconds=0.0)
