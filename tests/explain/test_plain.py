"""`plain` gives a copy with plain convolutions that computes the same, whatever was done to the model."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compare import relative_error
from support.explained import KINDS, Geometry, batches, make
from torch import nn

import explainfix_ext as efx

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")


@pytest.mark.parametrize("kind", [*KINDS, "hadamard", "learned"])
def test_the_copy_computes_the_same_with_the_same_names(kind: str) -> None:
    model, (x, _) = make(kind, Geometry).train(), batches(2)[0]
    before = copy.deepcopy(model.state_dict())
    copied = efx.plain(model)
    assert relative_error(copied(x), model.eval()(x)) < 1e-12
    assert [name for name, _ in copied.named_modules()] == [name for name, _ in model.named_modules()]
    assert type(copied.a) is nn.Conv2d
    assert not copied.training
    assert all("weight" in m._parameters for m in copied.modules() if isinstance(m, nn.Conv2d))
    learned = {p.data_ptr() for p in model.parameters()}
    assert not learned & {p.data_ptr() for p in copied.parameters()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if "extra" not in key)
    assert isinstance(model.a, efx.FixedConv2d) == (kind != "learned")


def test_memory_savers_and_streaming_are_off_in_the_copy_alone() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    model = nn.Sequential(body, nn.Flatten(), nn.LazyLinear(2))
    x = torch.rand(1, 3, 24, 24)
    model(x)
    efx.convert(model, "dct2", seed=0)
    efx.save_memory(model, "recompute")
    efx.stream(body, 8, calibrate=x)
    expected = model.eval()(x)
    copied = efx.plain(model)
    assert {type(m).__module__.split(".")[0] for m in copied.modules()} == {"torch"}
    assert "forward" in vars(body)
    assert not any("forward" in vars(m) for m in copied.modules())
    assert relative_error(copied(x), expected) < 1e-5
    assert type(body[2]) is not nn.ReLU, "the model itself still saves memory"


def test_a_layer_alone_and_what_a_model_kept() -> None:
    conv = efx.FixedConv2d(3, 8, 3, seed=0)
    assert torch.equal(efx.plain(conv).weight, conv.weight)

    class Keeping(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = super().forward(x)  # part of a graph, which deepcopy refuses
            return self.kept

    model = Keeping(conv)
    model(torch.rand(1, 3, 8, 8))
    assert type(efx.plain(model)[0]) is nn.Conv2d
    with pytest.raises(TypeError, match="model must be an nn.Module, got 3"):
        efx.plain(3)  # type: ignore[arg-type]
