"""Networks exported for ONNX Runtime compute there what torch does, by our operators and by plain convolutions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.compare import relative_error
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.onnx import export, library

pytest.importorskip("onnxscript", reason='needs the extra "test"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs the extra "test"')


def run(path: Path, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library())
    session = onnxruntime.InferenceSession(path, options)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(y)


@pytest.mark.parametrize("plain", [False, True])
def test_a_layer(plain: bool, tmp_path: Path) -> None:
    conv = efx.FixedConv2d(8, 12, 3, padding=1, groups=2, init="dct2", seed=0)
    model = nn.Sequential(conv, nn.BatchNorm2d(12), nn.ReLU())
    x = torch.randn(3, 8, 9, 10)
    model(x)
    model.eval()
    became = export(model, x[:1], tmp_path / "layer.onnx", plain=plain)
    assert became == {"0": "Conv" if plain else "IndexConv"}
    assert relative_error(run(tmp_path / "layer.onnx", x), model(x)) < 1e-6
