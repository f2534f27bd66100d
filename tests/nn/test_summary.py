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
    assert "multiply-adds" in text
    assert "multiply-adds" not in str(efx.summary(model))
    dense, _ = make("resnet18", init="dct2", density=0.1, plan="dense")
    dense_layer = efx.summary(dense).layers[1]
    assert dense_layer.kernel == "dense"
    assert dense_layer.stored_bytes == 64 * 64 + 9 * 9 * 8
    dense.eval()
    with torch.no_grad():
        dense(torch.randn(1, 3, 64, 64))
    assert efx.summary(dense).layers[1].kernel == "dense, weight kept"
    assert efx.summary(dense).layers[1].stored_bytes == dense_layer.stored_bytes + layer.dense_bytes


def test_a_hadamard_layer_counts_its_filters_and_the_transform() -> None:
    model = torch.nn.Sequential(efx.FixedConv2d(64, 96, (3, 5), padding="same", init="hadamard", seed=0, bias=False))
    layer = efx.summary(model, (1, 64, 8, 8)).layers[0]
    assert (layer.init, layer.nonzero, layer.rank, layer.is_index) == ("hadamard", 64 * 96, 4, False)
    # A row for each input and of the two chunks of outputs, twice 64 additions in six stages, a column an output.
    assert layer.multiply_adds == 64 * (2 * 64 * 5 + 2 * 64 * 6 + 96 * 3)
    assert layer.dense_multiply_adds == 64 * 64 * 96 * 15
    assert layer.stored_bytes == model[0].bank.nbytes < 8000
    sparse = efx.FixedConv2d(64, 64, 3, init="hadamard", density=0.25, seed=0)
    assert efx.summary(torch.nn.Sequential(sparse), (1, 64, 3, 3)).layers[0].multiply_adds == 64 * (3 + 4 + 3)
