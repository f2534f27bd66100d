"""Where NaN and infinity pass a fixed convolution, as the docstring of FixedConv2d has it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import explainfix_ext as efx
from explainfix_ext.ops import binaries


def _counts(init: str, plan: str, value: float, groups: int) -> tuple[int, int]:
    """Counts the outputs that are not finite, of ours and of torch, where half of the filters are zero."""
    layer = efx.FixedConv2d(16, 16, 3, padding=1, groups=groups, init=init, seed=0, plan=plan, density=0.5)
    x = torch.ones(1, 16, 9, 9)
    x[0, :, 4, 4] = value
    y = F.conv2d(x, layer.weight, layer.bias, padding=1, groups=groups)
    return int((~layer(x).isfinite()).sum()), int((~y.isfinite()).sum())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_zero_filters(value: float) -> None:
    for init, plan, groups in (("dct2", "dense", 1), ("kaiming_uniform", "low_rank", 1), ("dct2", "depthwise", 16)):
        ours, torchs = _counts(init, plan, value, groups)
        assert ours == torchs > 0, plan
    if binaries.LOADED["cpu"] is not None:
        ours, torchs = _counts("dct2", "index", value, 16)
        assert 0 < ours < torchs
