"""Training under torch.compile, by inductor: as in eager mode, and one graph serves all batch sizes."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from support.compare import relative_error
from torch import Tensor, nn

import explainfix_ext as efx

resnet = pytest.importorskip("timm.models.resnet", reason="timm (extra `models`) is not installed")
WAYS = {"fixed": {}, "learned mix": {"learn_coeff": True}, "learned 1x1": {"pointwise": True}}


def make(way: str) -> nn.Module:
    """A small ResNet-18 of index and low-rank plans."""
    stem = (nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
    blocks = (resnet.BasicBlock(8, 8), resnet.BasicBlock(8, 16, 2, shortcut))
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    efx.convert(model, {"4.*": "ghaar4_s1", "*": "dct2"}, seed=0, density=0.5, **WAYS[way])
    return model


def batch(images: int) -> tuple[Tensor, Tensor]:
    return torch.randn(images, 3, 64, 64), torch.randint(5, (images,))


class Training:
    def __init__(self, model: nn.Module, backend: str | None = None) -> None:
        self.model, self.optimizer = model, torch.optim.SGD(model.parameters(), 0.1)
        self.run, self.update = model, self.optimizer.step
        if backend:
            self.run = torch.compile(model, fullgraph=True, backend=backend)
            self.update = torch.compile(self.optimizer.step, backend=backend)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(self.run(x), y)
        loss.backward()
        self.update()
        self.optimizer.zero_grad()
        return loss.detach()


@pytest.mark.parametrize(
    ("backend", "way"),
    [("aot_eager", "fixed"), *(pytest.param("inductor", way, marks=pytest.mark.slow) for way in WAYS)],
)
def test_compiled_training_equals_eager(backend: str, way: str) -> None:
    """Forward, backward and optimizer. The second batch size makes the graph that serves the next ones."""
    torch.compiler.reset()
    model = make(way)
    before = [p.detach().clone() for p in model.parameters()]
    compiled, eager = Training(copy.deepcopy(model), backend), Training(model)
    for images, new_graph in ((4, True), (4, False), (4, False), (6, True), (8, False)):
        x, y = batch(images)
        with contextlib.nullcontext() if new_graph else torch.compiler.set_stance("fail_on_recompile"):
            loss = compiled.step(x, y)
        assert relative_error(loss, eager.step(x, y)) < 1e-5
    named = compiled.model.named_parameters()
    for (name, got), want, first in zip(named, eager.model.parameters(), before, strict=True):
        assert relative_error(first, want) > 2e-4, f"{name} did not learn"
        assert relative_error(got, want) < 5e-5, name
