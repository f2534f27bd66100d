"""When a drop-in applies, and when the plain class runs."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compare import relative_error
from support.training_step import EXACT, Block, check_saving, image, prepared, step
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import save_memory
from explainfix_ext.memory.notes import replay_of


@pytest.mark.parametrize("mode", [*EXACT, "int8"])
def test_autocast(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        return y.float().square().mean()

    model, x = prepared(Block(channels=16), torch.float32), image(4, torch.float32, 32)
    exact = step(copy.deepcopy(model), x)
    ours = copy.deepcopy(model)
    save_memory(ours, mode)
    with_torch, with_ours = step(model, x, loss), step(ours, x, loss)
    for name in exact:
        if exact[name].norm() > 1e-6:
            error = relative_error(with_ours[name], exact[name])
            assert error < 2 * relative_error(with_torch[name], exact[name]) + 0.02, name


@pytest.mark.parametrize("mode", EXACT)
def test_compile(mode: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), efx.FixedConv2d(8, 8, 3, seed=0), nn.BatchNorm2d(8), nn.SiLU()
    ).double()
    check_saving(model, image(), mode, lambda net, x: torch.compile(net, backend="aot_eager")(x).square().mean(), 1e-9)


def test_torch_func_and_no_grad_run_the_plain_path() -> None:
    model = prepared(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8).eval(), nn.ReLU(), nn.Conv2d(8, 1, 1)))
    parameters, x = dict(model.named_parameters()), image()

    def loss(p: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, p, (x,)).square().mean()

    before = torch.func.grad(loss)(parameters)
    save_memory(model, "recompute")
    for name, grad in torch.func.grad(loss)(parameters).items():
        assert relative_error(grad, before[name]) < 1e-12
    with torch.no_grad():
        assert replay_of(model[1](model[0](x))) is None


class _Tagged(Tensor):
    """Stands for a subclass such as monai's MetaTensor."""


@pytest.mark.parametrize("mode", EXACT)
def test_subclasses_of_tensor_run_the_plain_path(mode: str) -> None:
    model = prepared(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5)))

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        y = net(x.as_subclass(_Tagged))
        assert type(y) is _Tagged
        assert replay_of(y) is None
        return y.square().mean().as_subclass(Tensor)

    check_saving(model, image(), mode, loss)


def test_a_weight_of_a_subclass_runs_the_plain_path() -> None:
    model = prepared(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    save_memory(model, "recompute")
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(_Tagged))
    assert replay_of(model[0](image())) is None


@pytest.mark.parametrize("mode", EXACT)
def test_inputs_made_in_inference_mode(mode: str) -> None:
    """torch takes one where its values are not kept, as those of a fixed first layer's input are not."""
    with torch.inference_mode():
        x = image()
    model = prepared(nn.Sequential(efx.FixedConv2d(3, 8, 3, seed=0), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 1)))
    ours = copy.deepcopy(model)
    save_memory(ours, mode)
    for net in (model, ours):
        net(x).square().sum().backward()
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(model.parameters(), ours.parameters(), strict=True))
