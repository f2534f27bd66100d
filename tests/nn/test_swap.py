"""revert puts plain convolutions back that compute the same."""

from __future__ import annotations

import torch
from support.compare import relative_error
from torch import nn

from explainfix_ext import FixedConv2d, revert


def test_revert_folds_the_pointwise_in() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 6, (1, 3)))
    x = torch.randn(2, 4, 9, 9)
    for layer in (0, 1):
        model[layer] = FixedConv2d.from_conv2d(model[layer], "psine", seed=1, pointwise=True)
    y = model(x)
    revert(model, requires_grad=True)
    assert [type(m) for m in model] == [nn.Conv2d, nn.Conv2d]
    assert model[0].weight.requires_grad
    assert relative_error(model(x), y) < 1e-5
