"""Converted models as ONNX, by both exporters, as they are and reverted: onnxruntime computes what the model does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import relative_error
from torch import Tensor, nn

import explainfix_ext as efx

pytest.importorskip("onnx", reason='needs the extra "test"')
pytest.importorskip("onnxscript", reason='needs the extra "test"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs the extra "test"')
torchvision = pytest.importorskip("torchvision", reason="torchvision (extra `models`) is not installed")
timm = pytest.importorskip("timm", reason="timm (extra `models`) is not installed")
smp = pytest.importorskip("segmentation_models_pytorch", reason="smp (extra `models`) is not installed")

tv, Net = torchvision.models, tuple[Callable[[], nn.Module], dict[str, Any]]
NETS: dict[str, Net] = {  # name -> (maker, options of convert)
    "classifier": (lambda: tv.resnet18(num_classes=5), {"init": "dct2"}),
    "U-Net": (lambda: smp.Unet(encoder_depth=3, decoder_channels=(32, 16, 8), **UNET), {"init": "ghaar4_s1"}),
    "depthwise, same padding": (lambda: timm.create_model("test_efficientnet", pad_type="same"), {"init": "dct2"}),
}
MORE: dict[str, Net] = {
    "grouped, half of the filters": (lambda: timm.create_model("regnetx_002"), {"init": "ghaar", "density": 0.5}),
    "whole U-Net": (lambda: smp.Unet(**UNET), {"init": "dct2"}),
    "EfficientNet": (lambda: timm.create_model("tf_efficientnet_lite0"), {"init": "dct2"}),
    "learned 1x1": (lambda: tv.resnet18(), {"init": "psine", "pointwise": True}),
    "hadamard": (lambda: tv.resnet18(num_classes=5), {"init": "hadamard"}),
    "hadamard, groups": (lambda: timm.create_model("regnetx_002"), {"init": "hadamard", "density": 0.5, "terms": 2}),
    "learned mix": (lambda: tv.resnet18(), {"init": "dct2", "learn_coeff": True}),
    "little memory": (lambda: tv.resnet18(), {"init": "dct2", "memory": "recompute"}),
}
UNET = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 2}
# Sizes of files, as shares of the reverted model's: filters of one byte, or signs, each in place of nine floats.
SMALL = {"classifier": 0.1, "hadamard": 0.15}
EXPORTERS = {"dynamo": True, "torchscript": False}
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A converted model in eval mode whose output depends on its input: its BatchNorms have seen images."""
    maker, options = (NETS | MORE)[name]
    model = maker()
    efx.convert(model, seed=0, **options)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(4, 3, 64, 64))
    return model.eval(), torch.randn(3, 3, 64, 64)


def export(model: nn.Module, x: Tensor, exporter: str, path: Path) -> Path:
    """With a batch of any size."""
    if exporter == "dynamo":
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False)
    else:
        torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    return path


def run(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(out)


def size(path: Path) -> int:
    """Of the model, with the file that the dynamo exporter puts weights in."""
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", [*NETS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_onnxruntime_computes_the_same(name: str, exporter: str, tmp_path: Path) -> None:
    model, x = make(name)
    reverted = efx.revert(copy.deepcopy(model))
    with torch.no_grad():
        want = copy.deepcopy(model).double()(x.double())
    assert relative_error(want[:1], want[1:2]) > 1e-3, "the output depends on the input"
    for network, file in ((reverted, "reverted.onnx"), (model, "converted.onnx")):
        path = export(network, x[:2], exporter, tmp_path / file)
        assert relative_error(run(path, x), want) < 1e-5, file
    if name in SMALL and exporter == "dynamo":
        assert size(tmp_path / "converted.onnx") < SMALL[name] * size(tmp_path / "reverted.onnx")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_hadamard_layer_is_three_convolutions_and_a_ninth_of_the_bytes(exporter: str, tmp_path: Path) -> None:
    onnx, fixed = pytest.importorskip("onnx"), {"init": "hadamard", "seed": 0}
    model, x = nn.Sequential(efx.FixedConv2d(96, 64, 3, 2, padding=1, **fixed)).eval(), torch.randn(2, 96, 9, 8)
    path = export(model, x, exporter, tmp_path / "converted.onnx")
    assert relative_error(run(path, x), model(x)) < 1e-5
    assert [node.op_type for node in onnx.load(path).graph.node].count("Conv") == 3
    reverted = export(efx.revert(copy.deepcopy(model)), x, exporter, tmp_path / "reverted.onnx")
    assert size(path) < 0.2 * size(reverted)


def test_after_an_export_the_kernels_run_again(tmp_path: Path) -> None:
    model, x = nn.Sequential(efx.FixedConv2d(3, 8, 3, seed=0)).eval(), torch.randn(2, 3, 8, 8)
    export(model, x, "dynamo", tmp_path / "small.onnx")
    program = torch.export.export(model, (x,))
    assert "explainfix.fixed_conv2d.default" in {str(node.target) for node in program.graph.nodes}
