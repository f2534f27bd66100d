"""Exported networks compute in ONNX Runtime what torch does: by our operators, and by plain convolutions."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.onnx_session import run, session_of
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.deploy import onnx_export
from explainfix_ext.onnx import export, library

onnx = pytest.importorskip("onnx", reason='needs the extra "test"')
pytest.importorskip("onnxscript", reason='needs the extra "test"')
pytest.importorskip("onnxruntime", reason='needs the extra "test"')
torchvision = pytest.importorskip("torchvision", reason="torchvision (extra `models`) is not installed")
timm = pytest.importorskip("timm", reason="timm (extra `models`) is not installed")
smp = pytest.importorskip("segmentation_models_pytorch", reason="smp (extra `models`) is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
tv = torchvision.models
UNET = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 2}
NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], set[str]]] = {  # maker, options of convert, operators
    "index": (lambda: tv.resnet18(num_classes=5), {"init": "dct2"}, {"IndexConv"}),
    "low rank, U-Net": (
        lambda: smp.Unet(encoder_depth=3, decoder_channels=(64, 32, 8), **UNET),
        {"init": "ghaar4_s1"},
        {"LowRankConv", "Conv"},
    ),
    "hadamard": (lambda: tv.resnet18(num_classes=5), {"init": "hadamard"}, {"HadamardConv", "Conv"}),
    "depthwise, same padding": (
        lambda: timm.create_model("test_efficientnet", pad_type="same"),
        {"init": "dct2"},
        {"Conv", "IndexConv"},
    ),
}
MORE: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], set[str]]] = {
    "grouped, half of the filters": (
        lambda: timm.create_model("regnetx_002"),
        {"init": "dct2", "density": 0.5},
        {"IndexConv", "Conv"},
    ),
    "learned 1x1": (lambda: tv.resnet18(), {"init": "dct2", "pointwise": True}, {"IndexConv"}),
    "hadamard, groups": (
        lambda: timm.create_model("regnetx_002"),
        {"init": "hadamard", "density": 0.5, "terms": 2},
        {"Conv"},
    ),
    "pretrained": (lambda: tv.resnet18(), {"init": "unchanged"}, {"Conv"}),
    "learned mix": (lambda: tv.resnet18(), {"init": "dct2", "learn_coeff": True}, set()),
    "little memory": (lambda: tv.resnet18(), {"init": "dct2", "memory": "recompute"}, {"IndexConv"}),
}


@pytest.mark.parametrize("name", [*NETS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_networks_compute_the_same(name: str, tmp_path: Path) -> None:
    maker, options, operators = (NETS | MORE)[name]
    torch.manual_seed(0)
    model = maker()
    efx.convert(model, seed=0, **options)
    for _ in range(10):  # BatchNorms see images, so that the output depends on the input
        with torch.no_grad():
            model.train()(torch.randn(4, 3, 64, 64))
    x = torch.randn(3, 3, 64, 64)
    for plain in (False, True):
        became = export(model, x[:1], tmp_path / "net.onnx", plain=plain)
        assert set(became.values()) == ({"Conv"} if plain and operators else operators)
        assert model.training, "the model stays as it is"
        got = [run(tmp_path / "net.onnx", batch, with_library=not plain) for batch in (x, x[:1])]
        with torch.no_grad():
            want = model.eval()(x)
        model.train()
        assert relative_error(want[:1], want[1:2]) > 1e-3, "the output depends on the input"
        assert max(relative_error(got[0], want), relative_error(got[1], want[:1])) < 1e-5


class Block(nn.Module):
    """Two convolutions and a way around them, as a residual network has it."""

    def __init__(self, channels: int, act: Callable[[Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        fixed = {"padding": 1, "bias": False, "seed": 0} | options
        self.convs = nn.ModuleList(efx.FixedConv2d(channels, channels, 3, **fixed) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norms[0](self.convs[0](x)))
        return self.act(self.norms[1](self.convs[1](y)) + x)


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """In eval mode, with statistics, weights and biases of BatchNorm that are no zeros and ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        model(x)
    return model.eval()


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


KINDS: dict[str, dict[str, Any]] = {
    "IndexConv": {"init": "dct2"},
    "LowRankConv": {"init": "ghaar4_s1"},
    "HadamardConv": {"init": "hadamard"},
}


@pytest.mark.parametrize("act", [F.relu, F.relu6, F.silu, F.hardswish])
@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_a_convolution_is_folded_in(kind: str, act: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 32, 7, 9)
    model = settled(Block(32, act, **KINDS[kind]), x)
    export(model, x, tmp_path / "block.onnx")
    assert operators(tmp_path / "block.onnx") == {kind: 2}
    assert relative_error(run(tmp_path / "block.onnx", x), model(x)) < 1e-5
    assert relative_error(model(x), F.relu(x)) > 1e-3


def test_what_others_read_is_not_folded_in(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = efx.FixedConv2d(16, 16, 3, padding=1, seed=0), nn.BatchNorm2d(16)

        def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            y = self.conv(x)
            z = self.norm(self.conv(x + 1)) + weight  # repeated over the pixels
            w = self.conv(x + 2)
            return F.relu(y), y, F.gelu(z), w + w

    x, weight = torch.randn(2, 16, 5, 5), torch.randn(2, 16, 1, 1)
    model = Two().eval()
    became = export(model, (x, weight), tmp_path / "two.onnx")
    assert list(became) == ["conv", "conv.2", "conv.3"]
    assert operators(tmp_path / "two.onnx")["Relu"] == 1
    session = session_of(tmp_path / "two.onnx")
    got = session.run(None, dict(zip(("x", "weight"), (x.numpy(), weight.numpy()), strict=True)))
    for one, want in zip(got, model(x, weight), strict=True):
        assert relative_error(torch.from_numpy(one), want) < 1e-5


def test_a_bias_and_the_function(tmp_path: Path) -> None:
    bank = efx.make_bank("dct2", 32, 16, 3, seed=0)

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.norm = nn.Parameter(torch.randn(32)), nn.BatchNorm2d(32)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(efx.fixed_conv2d(x, bank, self.bias, stride=2, padding=(1, 0)))

    x = torch.randn(2, 16, 9, 8)
    model = settled(Functional(), x)
    assert list(export(model, x, tmp_path / "f.onnx").values()) == ["IndexConv"]
    assert operators(tmp_path / "f.onnx") == {"IndexConv": 1}
    assert relative_error(run(tmp_path / "f.onnx", x), model(x)) < 1e-5


def test_both_branches_of_a_condition(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (efx.FixedConv2d(16, 16, 3, init="dct2", seed=seed) for seed in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,))

    model, x = Branches().eval(), torch.rand(2, 16, 6, 6)
    assert len(export(model, x, tmp_path / "if.onnx")) == 2
    for images in (x, -x):
        assert relative_error(run(tmp_path / "if.onnx", images), model(images)) < 1e-5


def test_files_are_small_and_say_nothing_of_this_machine(tmp_path: Path) -> None:
    model, x = nn.Sequential(efx.FixedConv2d(128, 128, 3, seed=0)).eval(), torch.randn(1, 128, 9, 9)
    sizes = []
    for plain in (False, True):
        export(model, x, tmp_path / "small.onnx", plain=plain)
        text = (tmp_path / "small.onnx").read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in text
        sizes.append(len(text))
    assert sizes[0] < 0.15 * sizes[1]


def test_the_batch_has_a_name_and_shapes_are_inferred(tmp_path: Path) -> None:
    conv = efx.FixedConv2d(16, 32, 3, stride=2, padding=1, seed=0)
    path = tmp_path / "shapes.onnx"
    export(nn.Sequential(conv).eval(), torch.randn(1, 16, 9, 12), path)
    model = onnx.load(path)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = session_of(model.SerializeToString())
    assert session.get_inputs()[0].shape == ["batch", 16, 9, 12]
    assert session.get_outputs()[0].shape == ["batch", 32, 5, 6]


FRESH = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], options)
(y,) = session.run(None, {session.get_inputs()[0].name: numpy.load(sys.argv[3])})
assert "torch" not in sys.modules
numpy.save(sys.argv[4], y)
"""


def test_a_process_without_torch_runs_it(tmp_path: Path) -> None:
    x = torch.randn(2, 32, 9, 9)
    model = settled(Block(32, F.relu, **KINDS["IndexConv"]), x)
    export(model, x, tmp_path / "block.onnx")
    np.save(tmp_path / "x.npy", x.numpy())
    files = [library(), *(str(tmp_path / name) for name in ("block.onnx", "x.npy", "y.npy"))]
    subprocess.run([sys.executable, "-c", FRESH, *files], check=True, cwd=tmp_path)
    assert relative_error(torch.from_numpy(np.load(tmp_path / "y.npy")), model(x)) < 1e-5


def test_without_the_library_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "__file__", str(tmp_path / "onnx_export.py"))
    with pytest.raises(FileNotFoundError, match=r"_onnx.abi3.so was not built: reinstall"):
        library()
