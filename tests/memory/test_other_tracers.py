"""Models after save_memory go through the tracers of torch, and of what is built on them, as before."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from support.training_step import EXACT, Block, check_same, check_saving, image, prepared, step
from torch import fx, nn

from explainfix_ext.memory import save_memory


def _targets(model: nn.Module) -> list[tuple[str, str]]:
    return [(node.op, str(node.target)) for node in fx.symbolic_trace(model).graph.nodes]


@pytest.mark.parametrize("mode", EXACT)
def test_symbolic_trace_keeps_modules_whole(mode: str) -> None:
    model = prepared(Block())
    plain, targets = copy.deepcopy(model), _targets(model)
    save_memory(model, mode)
    assert _targets(model) == targets
    traced = fx.symbolic_trace(model)
    assert type(traced.get_submodule("stem.1")).__name__ == "MemoryBatchNorm2d"
    want, got = step(plain, image()), step(traced, image())
    check_same(want, {name: got[name] for name in want})  # it has filters of fixed layers among its buffers
    save_memory(model, "off")
    assert _targets(model) == targets


def test_feature_extractor_of_torchvision() -> None:
    """The blocks of this network have drop-ins of their own, which torch.fx looks into."""
    models = pytest.importorskip("torchvision.models")
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model, x = models.densenet121().eval(), image(1, torch.float32, 32)
    want = model.features[:5](x)
    save_memory(model, "recompute")
    got = extraction.create_feature_extractor(model, {"features.denseblock1": "y"})(x)["y"]
    assert torch.allclose(got, want, atol=1e-5)
    got.sum().backward()


@pytest.mark.parametrize("mode", EXACT)
def test_jit_trace_and_export(mode: str) -> None:
    layers = (nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5))
    model = prepared(nn.Sequential(*layers)).eval()
    x = image()
    want = model(x)
    save_memory(model, mode)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x), file)  # with gradients on
    file.seek(0)
    assert torch.allclose(torch.jit.load(file)(x), want)
    for strict in (False, True):
        assert torch.allclose(torch.export.export(model, (x,), strict=strict).module()(x), want)


def test_jit_script_says_what_to_do() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    save_memory(model)
    with pytest.raises(RuntimeError, match=r'call save_memory\(model, "off"\) before it'):
        torch.jit.script(model)
    check_saving(copy.deepcopy(model).double(), image(), "exact")
    save_memory(model, "off")
    torch.jit.script(model)
