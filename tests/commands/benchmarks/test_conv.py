"""A layer case: every one computes the right result, wrong ones are not timed, and rows hold what was measured."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')

from explainfix_ext.commands.benchmarks import conv
from explainfix_ext.commands.benchmarks.cases import LAYER_CASES, LayerCase

LAYER = LayerCase("tiny", "a test", 4, 6, 5, batch=2)


@pytest.mark.parametrize("direction", conv.DIRECTIONS)
@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_every_layer_case_is_right(case: LayerCase, direction: str):
    small = case.quick()
    with torch.no_grad():
        errors = conv.checked_errors(small, direction, conv.layer_calls(small, direction))
    assert {"torch", "torch channels_last", "ours", "ours channels_last"} <= errors.keys() <= set(conv.CALLS)


@pytest.mark.parametrize("direction", conv.DIRECTIONS)
def test_row_of_a_layer(direction):
    row = conv.measure_layer(LAYER, direction, threads=1, rounds=3, peak=1e9, least_seconds=0.0)
    seconds = {name: found["median"] for name, found in row["seconds"].items() if found is not None}
    torch_name = "torch channels_last" if row["torch_layout"] == "channels_last" else "torch"
    assert seconds[torch_name] == min(seconds["torch"], seconds["torch channels_last"])
    assert row["ratio"]["median"] == pytest.approx(seconds[torch_name] / seconds["ours"])
    assert row["ratio_channels_last"]["median"] == pytest.approx(seconds[torch_name] / seconds["ours channels_last"])
    assert row["peak_fraction"] == pytest.approx(4 * 6 * 2 * 25 / (seconds["ours"] * 1e9))
    assert row["copies"]["median"] == pytest.approx(seconds["ours"] / seconds["copy"])
    assert row["seconds"].keys() - {"copy"} == row["error"].keys() == set(conv.CALLS)
    assert (row["input"], row["filters"], row["dtype"]) == ([2, 4, 5, 5], [6, 4, 3, 3], "float32")
    assert row["plan"]


def test_wrong_results_are_not_timed(monkeypatch):
    right = conv.ours
    monkeypatch.setattr(conv, "ours", lambda *arguments: right(*arguments) * 1.001)
    monkeypatch.setattr(conv, "interleaved", lambda *arguments: pytest.fail("it was timed"))
    for direction in conv.DIRECTIONS:
        with pytest.raises(FloatingPointError, match=f"tiny, {direction}: ours computes something else.* 1.0e-03"):
            conv.measure_layer(LAYER, direction, threads=1, rounds=1, peak=1e9)
