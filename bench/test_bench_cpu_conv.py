"""The cases of `explainfix bench` under pytest-benchmark. Run: pytest bench --benchmark-only [-k resnet18-inference]

A group of its table is one case, task and number of threads. What is timed is compared with float64 first.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason='needs the extra "test"')
pytest.importorskip("torchvision", reason='needs the extra "models"')

from explainfix_ext._support.timing import using_threads
from explainfix_ext.commands.benchmarks import conv, models
from explainfix_ext.commands.benchmarks.cases import LAYER_CASES, MODEL_CASES, LayerCase, ModelCase
from explainfix_ext.commands.benchmarks.jobs import parse_threads

ROUNDS = {"rounds": 9, "warmup_rounds": 2}
MODES = [(case, mode) for case in MODEL_CASES for mode in models.modes_of(case)]


@pytest.mark.parametrize("threads", parse_threads(None))
@pytest.mark.parametrize("name", conv.CALLS)
@pytest.mark.parametrize("direction", conv.DIRECTIONS)
@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_layer(benchmark, case: LayerCase, direction: str, name: str, threads: int) -> None:
    with torch.no_grad(), using_threads(threads):
        calls = conv.layer_calls(case, direction)
        if name not in calls:
            pytest.skip(f"{name} does not exist for this")
        benchmark.group = f"{case.name}, {direction}, threads: {threads}"
        benchmark.extra_info.update(conv.checked_errors(case, direction, {name: calls[name]}))
        benchmark.pedantic(calls[name], **ROUNDS)


@pytest.mark.parametrize("threads", parse_threads(None))
@pytest.mark.parametrize(("case", "mode"), MODES, ids=[f"{case.name}-{mode}" for case, mode in MODES])
def test_model(benchmark, case: ModelCase, mode: str, threads: int) -> None:
    with using_threads(threads):
        model = models.build_mode(case, mode)
        benchmark.group = f"{case.name}, threads: {threads}"
        benchmark.extra_info["error"] = models.checked_error(case, mode, model)
        benchmark.pedantic(models.step(case, model), **ROUNDS)
