"""The torch networks of sktime take fixed filters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.zoo import convert_quietly
from torch import nn

import explainfix_ext as efx

pytest.importorskip("sktime")


def networks() -> dict[str, Any]:
    from sktime.networks.fcn import FCNNetworkTorch
    from sktime.networks.inceptiontime import InceptionTimeNetworkTorch
    from sktime.networks.resnet import ResNetNetworkTorch

    return {"fcn": FCNNetworkTorch, "resnet": ResNetNetworkTorch, "inceptiontime": InceptionTimeNetworkTorch}


@pytest.mark.parametrize("name", ["fcn", "resnet", "inceptiontime"])
def test_convert_learns_and_reverts(name: str) -> None:
    torch.manual_seed(0)
    model = networks()[name](input_size=2, num_classes=3)
    x, y = torch.randn(4, 60, 2), torch.tensor([0, 1, 2, 0])
    count = sum(isinstance(m, nn.Conv1d) and m.kernel_size[0] > 1 for m in model.modules())
    report = convert_quietly(model, seed=0, pointwise=name != "inceptiontime")
    assert len(report.converted) == count > 0
    assert not report.skipped
    nn.functional.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    assert relative_error(efx.plain(model)(x), model(x)) < 1e-5
