"""summary counts filters, bytes and multiply-adds of fixed layers."""

from __future__ import annotations

import pytest
import torch
from support.zoo import make

import explainfix_ext as efx
from explainfix_ext.ops import binaries

pytest.importorskip("torchvision", reason="torchvision (extra `models`) is not installed")


@pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels: the plan would be dense")
def test_summary_counts() -> None:
    model, _ = make("resnet18", init="dct2", density=0.1)
    result = efx.summary(model, (1, 3, 64, 64))
    assert len(result.layers) == 17
    layer = result.layers[1]
    assert layer.shape == (64, 64, 3, 3)
    assert layer.nonzero == 410
    assert layer.kernel == "index"
    assert layer.multiply_adds == 410 * 16 * 16
    assert layer.dense_multiply_adds == 64 * 64 * 9 * 16 * 16
    assert layer.dense_bytes == 64 * 64 * 9 * 4
    assert layer.stored_bytes == 64 * 64 + 9 * 9 * 8 + model.layer1[0].conv1.kernel_plan.packed.nbytes
    assert model.training
    text = str(result)
    assert "layer1.0.conv1" in text
    assert "64x64x3x3 (410)" in text
    dense, _ = make("resnet18", init="dct2", density=0.1, plan="dense")
    dense_layer = efx.summary(dense).layers[1]
    assert dense_layer.kernel == "dense"
    assert dense_layer.stored_bytes == 64 * 64 + 9 * 9 * 8
    dense.eval()
    with torch.no_grad():
        dense(torch.randn(1, 3, 64, 64))
    assert efx.summary(dense).layers[1].kernel == "dense, weight kept"
    assert efx.summary(dense).layers[1].stored_bytes == dense_layer.stored_bytes + layer.dense_bytes
