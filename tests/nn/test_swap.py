"""Layers become fixed and plain again in place: they compute the same, and whatever refers to one has the new one."""

from __future__ import annotations

import copy
import functools
import types

import pytest
import torch
from support.compare import relative_error
from support.zoo import convert_quietly
from torch import nn

from explainfix_ext import FixedConv2d, revert


def test_revert_folds_the_pointwise_in() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 6, (1, 3)))
    x = torch.randn(2, 4, 9, 9)
    for layer in (0, 1):
        model[layer] = FixedConv2d.from_conv2d(model[layer], "psine", seed=1, pointwise=True)
    y = model(x)
    revert(model, requires_grad=True)
    assert [type(m) for m in model] == [nn.Conv2d, nn.Conv2d]
    assert model[0].weight.requires_grad
    assert relative_error(model(x), y) < 1e-5


class Holder(nn.Module):
    """Refers to one convolution in every way that is not its place in `_modules`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv = nn.Conv2d(3, 8, 3)
        self.listed, self.mapped, self.partial = [conv], {"a": (conv,)}, functools.partial(conv)
        self.forward_of, self.call_of = conv.forward, conv.__call__
        self.closure, self.space = lambda x: conv(x), types.SimpleNamespace(conv=conv)
        object.__setattr__(self, "unregistered", nn.Sequential(conv))

    def results(self, x: torch.Tensor) -> list[torch.Tensor]:
        others = [self.partial, self.forward_of, self.call_of, self.closure, self.space.conv, self.unregistered]
        return [f(x) for f in (self.listed[0], self.mapped["a"][0], *others)]


@pytest.mark.parametrize("options", [{}, {"pointwise": True}, {"learn_coeff": True}])
def test_whatever_refers_to_a_layer_has_the_fixed_and_the_reverted_one(options: dict[str, bool]) -> None:
    model, x = Holder(), torch.randn(2, 3, 8, 8)
    mine, before = model.conv, model.conv(x)
    convert_quietly(model, **options)
    y = model.conv(x)
    assert relative_error(before, y) > 0.1
    for holder in (model, copy.deepcopy(model)):
        assert all(torch.equal(result, y) for result in holder.results(x))
    assert type(mine) is FixedConv2d
    revert(model)
    assert type(mine) is nn.Conv2d
    assert all(relative_error(result, y) < 1e-5 for result in model.results(x))


@pytest.mark.parametrize("pointwise", [False, True])
def test_conv_forward_takes_the_weight_given(pointwise: bool) -> None:
    conv, x = FixedConv2d(3, 8, 3, seed=0, pointwise=pointwise), torch.randn(2, 3, 8, 8)
    for weight, bias in ((conv.weight, conv.bias), (conv.weight * 2, conv.bias), (conv.weight, None)):
        y = nn.functional.conv2d(x, weight, None if pointwise else bias)
        y = nn.functional.conv2d(y, conv.pointwise, bias) if pointwise else y
        assert relative_error(conv._conv_forward(x, weight, bias), y) < 1e-5


def test_hooks_that_get_the_module_still_do() -> None:
    """Torch keeps a weak reference to the module that a hook was registered on."""
    model, seen = nn.Sequential(nn.Conv2d(3, 8, 3)), []
    model[0].register_load_state_dict_pre_hook(lambda module, *args: seen.append(module))
    convert_quietly(model)
    model.load_state_dict(model.state_dict())
    assert seen == [model[0]]


def test_a_compiled_layer_runs_the_fixed_filters() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), torch.randn(1, 3, 8, 8)
    model[0].compile(backend="eager")
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    convert_quietly(model)
    y = model[0].forward(x)
    assert torch.equal(model(x), y)
    assert torch.equal(compiled(x), y)


def test_a_layer_with_a_parametrized_bias_is_not_reverted() -> None:
    """torch has made it a class of its own, which a Conv2d does not have."""
    model, x = nn.Sequential(FixedConv2d(3, 8, 3, seed=0), FixedConv2d(8, 8, 3, seed=0)), torch.randn(1, 3, 8, 8)
    nn.utils.parametrize.register_parametrization(model[1], "bias", nn.Tanh())
    y = model(x)
    with pytest.raises(TypeError, match="bias is parametrized: remove_parametrizations first"):
        revert(model)
    assert torch.equal(model(x), y)
    nn.utils.parametrize.remove_parametrizations(model[1], "bias")
    assert relative_error(revert(model)(x), y) < 1e-5
