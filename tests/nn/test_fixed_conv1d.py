"""FixedConv1d behaves as an nn.Conv1d whose weight nobody learns."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.compare import TOLERANCE, check_equals, relative_error
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext import FixedConv1d

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 9, "stride": 2, "dtype": torch.float64},
    {"kernel_size": 5, "dilation": 2, "padding": "same"},
    {"kernel_size": 8, "padding": "same", "bias": False},  # one more at the end
    {"kernel_size": 4, "padding": "same", "dilation": 3, "groups": 2},
    {"kernel_size": 2, "padding": "valid", "groups": 4},
    {"kernel_size": 3, "padding": 2, "stride": 3, "padding_mode": "reflect"},
    {"kernel_size": 6, "padding": "same", "padding_mode": "circular"},
    {"kernel_size": 7, "padding": 3, "padding_mode": "replicate", "groups": 2, "dtype": torch.float64},
]
MODES: dict[str, dict[str, Any]] = {
    "fixed": {"init": "ghaar"},
    "learn_coeff": {"init": "ghaar", "learn_coeff": True},
    "hadamard": {"init": "hadamard"},
    "pointwise": {"init": "dct2", "pointwise": True},
}


def plain_twin(conv: FixedConv1d, options: dict[str, Any]) -> nn.Module:
    twin = nn.Conv1d(
        conv.in_channels, conv.out_channels, **options | ({"bias": False} if conv.pointwise is not None else {})
    )
    twin.weight = nn.Parameter(conv.weight.detach())
    if conv.pointwise is None:
        twin.bias = conv.bias
        return twin
    mix = nn.Conv1d(conv.out_channels, conv.out_channels, 1, bias=conv.bias is not None, dtype=conv.weight.dtype)
    mix.weight, mix.bias = conv.pointwise, conv.bias
    return nn.Sequential(twin, mix)


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_equals_conv1d(options: dict[str, Any], mode: str) -> None:
    conv = FixedConv1d(4, 8, **options, **MODES[mode], seed=0)
    twin = plain_twin(conv, options)
    x = torch.randn(2, 4, 31, dtype=conv.weight.dtype, requires_grad=True)
    expected = check_equals(conv, twin, x)
    assert relative_error(conv(x[0]), expected[0]) <= TOLERANCE[x.dtype]
    assert relative_error(conv.to_conv1d()(x), expected) <= TOLERANCE[x.dtype]


@pytest.mark.parametrize("init", ["dct2", "sdct4", "ghaar4_s1", "hadamard", "psine", "kaiming_uniform"])
@pytest.mark.parametrize(("inputs", "groups", "size"), [(1, 1, 40), (16, 1, 9), (16, 16, 3)])
def test_inits(init: str, inputs: int, groups: int, size: int) -> None:
    conv = FixedConv1d(inputs, 16, size, groups=groups, init=init, seed=1)
    assert conv.weight.shape == (16, inputs // groups, size)
    assert conv.bank.shape == (16, inputs // groups, 1, size)
    assert torch.equal(conv.weight, efx.make_bank(init, 16, inputs, (1, size), groups=groups, seed=1).weight()[:, :, 0])


def test_auto_is_dct2() -> None:
    plain = nn.Sequential(nn.Conv1d(16, 16, 9), nn.Conv1d(16, 16, 9))
    efx.convert(plain, seed=0)
    layers = (
        *plain,
        FixedConv1d(1, 16, 40),
        FixedConv1d(16, 16, 9, density=0.5),
        FixedConv1d(16, 16, 9, learn_coeff=True),
    )
    assert [layer._held.bank.recipe.init for layer in layers] == ["dct2"] * 5


def test_is_a_conv1d_without_a_weight_that_keeps_no_input() -> None:
    conv = FixedConv1d(4, 8, 9, seed=0)
    assert isinstance(conv, nn.Conv1d)
    assert [name for name, _ in conv.named_parameters()] == ["bias"]
    kept: list[Tensor] = []
    x = torch.randn(2, 4, 500, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        conv(x)
    assert all(t.numel() < x.numel() for t in kept)
    with pytest.raises(AttributeError, match="stores no weight"):
        conv.weight = torch.zeros(8, 4, 9)
    assert "bank=dct2, rank=9" in repr(conv)


def test_filters_are_saved_moved_and_copied() -> None:
    conv, other = (FixedConv1d(8, 4, 5, seed=seed, pointwise=True) for seed in (0, 1))
    x = torch.randn(1, 8, 20)
    assert not torch.allclose(conv(x), other(x))
    other.load_state_dict(conv.state_dict())
    assert torch.equal(conv(x), other(x))
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(conv(x), twin(x))
    double = copy.deepcopy(conv).double()
    assert double.weight.dtype == torch.float64
    assert relative_error(conv(x), double(x.double())) <= TOLERANCE[torch.float32]
    meta = FixedConv1d(8, 4, 5, seed=0, pointwise=True, device="meta").to_empty(device="cpu")
    meta.load_state_dict(conv.state_dict())
    assert torch.equal(conv(x), meta(x))


def test_reset_and_new_bank() -> None:
    conv = FixedConv1d(4, 4, 3, seed=0, learn_coeff=True, pointwise=True)
    before = {name: p.detach().clone() for name, p in conv.named_parameters()}
    with torch.no_grad():
        for p in conv.parameters():
            p.add_(1)
    conv.reset_parameters()
    assert all(torch.equal(before[name], p) for name, p in conv.named_parameters() if name != "bias")
    weight = torch.randn(4, 4, 1, 3)
    conv.bank = efx.FilterBank.from_weight(weight)
    torch.testing.assert_close(conv.weight, weight[:, :, 0])


def test_from_conv1d_takes_over_what_the_layer_had() -> None:
    plain = nn.Conv1d(4, 8, 5, padding="same", groups=2)
    fixed = FixedConv1d.from_conv1d(plain)
    assert torch.equal(fixed.weight, plain.weight)
    assert fixed.bias is plain.bias
    assert FixedConv1d.from_conv1d(fixed, "dct2", seed=2).bank.recipe.init == "dct2"
    assert type(fixed.to_conv1d()) is nn.Conv1d
    assert fixed.to_conv1d(requires_grad=True).weight.requires_grad


def test_refusals() -> None:
    conv = FixedConv1d(4, 8, 3, seed=0)
    for x in (torch.zeros(1, 4, 5, 5), torch.zeros(5)):
        with pytest.raises(ValueError, match=r"x must be \[N, C, L\] or \[C, L\]"):
            conv(x)
    with pytest.raises(ValueError, match="4 \\* 1 channels"):
        conv(torch.zeros(1, 3, 9))
    with pytest.raises(ValueError, match="at least as large"):
        conv(torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match=r"bank must be \[O, I/groups, kh, kw\] = \[8, 4, 1, 3\], got \[8, 4, 3, 3\]"):
        FixedConv1d(4, 8, 3, bank=efx.make_bank("dct2", 8, 4, 3, seed=0))
    for one, other in (
        (efx.FixedConv2d.from_conv2d, nn.Conv1d(1, 2, 3)),
        (FixedConv1d.from_conv1d, nn.Conv2d(1, 2, 3)),
    ):
        with pytest.raises(TypeError, match="conv cannot be replaced"):
            one(other)
