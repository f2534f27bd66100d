"""Wide residual networks: their numbers of parameters are those of the paper, and convert fixes nearly all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import explainfix_ext as efx
from explainfix_ext.training.models import build_model

for package in ("torchvision", "timm"):
    pytest.importorskip(package, reason='needs the extra "demo"')


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "count"), [("wrn-16-4", 2_748_890), ("wrn-40-2", 2_243_546), ("wrn-28-10", 36_479_194)]
)
def test_as_many_parameters_as_the_paper_says(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build_model(name, 3, 10)) == count


def test_fixed_filters_leave_one_percent_and_pointwise_some_more() -> None:
    model = build_model("wrn-16-4", 3, 10)
    spatial = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    with pytest.warns(UserWarning, match="little is left to learn"):
        efx.convert(model, "dct2", seed=0)
    assert parameters(model) == 2_748_890 - spatial == 48_170
    mixed = build_model("wrn-16-4", 3, 10)
    report = efx.convert(mixed, "dct2", seed=0, pointwise=True)
    outputs = [m.out_channels for m in mixed.modules() if isinstance(m, efx.FixedConv2d)]
    assert len(report.converted) == len(outputs) == 13
    assert parameters(mixed) == 48_170 + sum(n * n for n in outputs)


def test_runs_and_learns() -> None:
    model = build_model("wrn-10-1", 1, 5)
    y = model(torch.randn(2, 1, 28, 28))
    assert y.shape == (2, 5)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)] == [2, 2]


@pytest.mark.parametrize("name", ["wrn-16", "wrn-17-4", "wrn-4-1", "wrn-16-0", "wrn-70-1", "wrn-16-13", "wrn-16-4@2"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"model must be wrn-DEPTH-WIDTH such as wrn-16-4, .*got '{name}'"):
        build_model(name, 3, 10)
