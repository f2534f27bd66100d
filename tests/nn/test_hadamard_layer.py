"""A FixedConv2d of hadamard filters: it is saved, moved, copied and learned from as any other."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from support.compare import TOLERANCE, relative_error
from torch import nn

import explainfix_ext as efx
from explainfix_ext import FixedConv2d

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (1, 5), "stride": (1, 2), "terms": 2},
    {"kernel_size": 4, "padding": "same", "bias": False, "groups": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "density": 0.25},
    {"kernel_size": 7, "stride": 2, "padding": 3, "dtype": torch.float64, "functions": 4},
]


def layer(seed: int = 0, **options: Any) -> FixedConv2d:
    torch.manual_seed(seed)
    return FixedConv2d(16, 24, **{"kernel_size": 3, "init": "hadamard", "seed": seed} | options)


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("mode", [{}, {"learn_coeff": True}, {"pointwise": True}], ids=str)
def test_equals_the_plain_layer_that_it_becomes(options: dict[str, Any], mode: dict[str, Any]) -> None:
    conv = layer(**options, **mode)
    plain = conv.to_conv2d()
    x = torch.randn(2, 16, 13, 12, dtype=conv.weight.dtype, requires_grad=True)
    for training in (True, False):
        y, expected = conv.train(training)(x), plain(x)
        assert relative_error(y, expected) <= TOLERANCE[x.dtype] * (3 if conv.pointwise is not None else 1)
        grad = torch.randn_like(y)
        dx, want = (torch.autograd.grad(t, x, grad)[0] for t in (y, expected))
        assert relative_error(dx, want) <= TOLERANCE[x.dtype] * (3 if conv.pointwise is not None else 1)


def test_copies_and_pickles_share_the_filters() -> None:
    conv, x = layer(), torch.randn(1, 16, 6, 6)
    assert copy.deepcopy(conv).bank is conv.bank
    again = pickle.loads(pickle.dumps(conv))
    assert again.bank.recipe == conv.bank.recipe
    assert again.kernel_plan.name == conv.kernel_plan.name
    file = io.BytesIO()
    torch.save(conv.state_dict(), file)
    file.seek(0)
    loaded = layer(seed=1)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (again, loaded):
        assert torch.equal(other(x), conv(x))


def test_to_keeps_the_filters_numbers() -> None:
    conv = layer()
    before = conv.bank.weight(torch.float64)
    for moved in (conv.half(), conv.to(torch.bfloat16), conv.double(), conv.float()):
        assert torch.equal(moved.bank.weight(torch.float64), before)
        assert [t.dtype for t in moved.bank.hadamard.tensors] == [torch.float32] * 2 + [torch.int16] * 2
        assert moved(torch.randn(1, 16, 5, 5).to(moved.weight.dtype)).dtype == moved.weight.dtype
    assert torch.equal(conv.to("meta").to_empty(device="cpu").bank.weight(torch.float64), before)


@pytest.mark.parametrize("given", ["recipe", "tensors"])
def test_a_layer_of_other_groups_refuses_the_filters(given: str) -> None:
    """The shape is the same: [O, I/groups, kh, kw] of 32 inputs in two groups."""
    two = FixedConv2d(32, 24, 3, groups=2, init="hadamard", seed=0)
    if given == "tensors":
        two.bank = efx.FilterBank(two.bank.basis, hadamard=two.bank.hadamard)
    one = layer()
    before = one.bank
    message = "bank must be for 1 groups, as the layer is, got one for 2"
    with pytest.raises(RuntimeError, match=f"_extra_state: {message}"):
        one.load_state_dict(two.state_dict())
    with pytest.raises(ValueError, match=message):
        one.bank = two.bank
    with pytest.raises(ValueError, match=message):
        FixedConv2d(16, 24, 3, bank=two.bank)
    with pytest.raises(ValueError, match="groups must be those that the bank was made for, 2, got 1"):
        efx.fixed_conv2d(torch.randn(1, 16, 5, 5), two.bank)
    assert one.bank is before


def test_filters_without_a_recipe_are_saved_as_tensors() -> None:
    conv, other = layer(), layer(seed=1)
    conv.bank = efx.FilterBank(conv.bank.basis, hadamard=conv.bank.hadamard, scale=0.5)
    state = conv.state_dict()
    other.load_state_dict(state)
    assert other.bank.hadamard is not None
    assert torch.equal(other.weight, conv.weight)
    assert state["_extra_state"].numel() < 4000


def test_coefficients_can_be_learned() -> None:
    conv, fixed = layer(learn_coeff=True), layer()
    assert conv.bank.hadamard is None
    assert conv.coeff.shape == (24, 16, 4)
    torch.testing.assert_close(conv.weight, fixed.weight)
    with torch.no_grad():
        conv.coeff.zero_()
    conv.reset_parameters()
    torch.testing.assert_close(conv.weight, fixed.weight)
    conv(torch.randn(1, 16, 5, 5)).sum().backward()
    assert conv.coeff.grad is not None
    other = layer(seed=1, learn_coeff=True)
    other.load_state_dict(conv.state_dict())
    assert torch.equal(other.weight, conv.weight)
    conv.bank = fixed.bank
    torch.testing.assert_close(conv.weight, fixed.weight)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_plain_layer_becomes_one_and_goes_back(groups: int) -> None:
    plain = nn.Conv2d(16, 24, 3, padding=1, groups=groups)
    conv = FixedConv2d.from_conv2d(plain, "hadamard", seed=3, terms=2)
    assert conv.bank.groups == groups
    assert conv.bank.recipe.options == {"terms": 2}
    x = torch.randn(1, 16, 5, 5)
    y = conv(x)
    model = nn.Sequential(conv)
    efx.revert(model)
    assert type(model[0]) is nn.Conv2d
    torch.testing.assert_close(model(x), y)


def test_a_plan_is_for_its_kind_of_bank() -> None:
    for name in ("index", "low_rank", "depthwise"):
        with pytest.raises(ValueError, match=rf"plan '{name}' needs .*, got a hadamard bank of shape \[24, 16, 3, 3\]"):
            layer(plan=name)
    with pytest.raises(ValueError, match="plan 'hadamard' needs a hadamard bank, got an index bank"):
        layer(init="dct2", plan="hadamard")
    conv = layer(plan="hadamard")
    with pytest.raises(ValueError, match="plan 'hadamard' needs a hadamard bank, got coefficients"):
        conv.bank = efx.make_bank("ghaar", 24, 16, 3, seed=0)
    assert conv.bank.hadamard is not None
