"""The workloads: names, reasons, and how many operations each needs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')

from explainfix_ext.commands.benchmarks import models
from explainfix_ext.commands.benchmarks.cases import LAYER_CASES, MODEL_CASES, LayerCase


def test_names_are_unique_and_have_reasons():
    cases = [*LAYER_CASES, *MODEL_CASES]
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.reason for case in cases)
    assert {case.task for case in MODEL_CASES} == set(models.MODES)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("load-add", 4 * 6 * 2 * 25)),
        ({"stride": 2}, ("load-add", 4 * 6 * 2 * 9)),
        ({"density": 0.25}, ("load-add", 6 * 2 * 25)),
        ({"rank": 2}, ("FMA", 2 * 4 * 6 * 2 * 25)),
        ({"rank": 4, "pca": True, "kernel": 5}, ("FMA", 4 * 4 * 6 * 2 * 25)),
        ({"groups": 2}, ("load-add", 2 * 6 * 2 * 25)),
        ({"groups": 4, "out_channels": 4}, ("FMA", 4 * 9 * 2 * 25)),
        ({"init": "hadamard"}, ("FMA", (2 * 4 * 3 + 2 * 4 * 2 + 6 * 3) * 2 * 25)),  # six outputs in chunks of four
    ],
)
def test_operations_are_counted(fields, expected):
    case = LayerCase(
        **{"name": "n", "reason": "r", "in_channels": 4, "out_channels": 6, "size": 5, "batch": 2} | fields
    )
    assert case.operations(case.bank()) == expected


def test_pca_functions_are_orthonormal_and_cases_repeat():
    case = LayerCase("n", "r", 4, 6, 5, rank=4, pca=True)
    rows = case.bank().basis.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4, dtype=torch.float64))
    assert torch.equal(case.bank().weight(), case.bank().weight())
