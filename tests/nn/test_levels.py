"""A layer with several dilations computes torch.cat of F.conv2d, and is otherwise one FixedConv2d."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import TOLERANCE, relative_error
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext import CoConv2d, FixedConv2d

INITS = ("dct2", "ghaar4_s1", "hadamard")
# Options of the layer -> the padding of dilation 1, which the definition needs as numbers.
GEOMETRIES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"kernel_size": 3, "padding": 1}, (1, 1)),
    ({"kernel_size": 3, "padding": 1, "stride": 2, "bias": False}, (1, 1)),
    ({"kernel_size": (5, 3), "padding": "same"}, (2, 1)),
    ({"kernel_size": 3, "padding": "valid", "groups": 4}, (0, 0)),
    ({"kernel_size": 3, "padding": (0, 2), "groups": 8, "stride": (1, 2)}, (0, 2)),
    ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, (1, 1)),
    ({"kernel_size": 3, "padding": 1, "padding_mode": "circular", "groups": 2, "dilations": (3, 1)}, (1, 1)),
]


def by_hand(conv: Any, x: Tensor, padding: tuple[int, int]) -> Tensor:
    """The definition, one output channel after another."""
    mode = {"zeros": "constant"}.get(conv.padding_mode, conv.padding_mode)
    dilations = [d for d, size in conv.levels for _ in range(size)]
    per_group, inputs = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    channels = []
    for o, d in enumerate(dilations):
        up, left = (p + (d - 1) * (k - 1) // 2 for p, k in zip(padding, conv.kernel_size, strict=True))
        own = F.pad(x[:, o // per_group * inputs :][:, :inputs], (left, left, up, up), mode=mode)
        bias = None if conv.bias is None else conv.bias[o : o + 1]
        channels.append(F.conv2d(own, conv.weight[o : o + 1], bias, conv.stride, dilation=d))
    return torch.cat(channels, 1)


@pytest.mark.parametrize(("options", "padding"), GEOMETRIES, ids=str)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_convolutions_side_by_side(
    options: dict[str, Any], padding: tuple[int, int], init: str, dtype: torch.dtype
) -> None:
    options = {"dilations": (1, 2, 3), "dtype": dtype} | options
    conv = FixedConv2d(8, 16, **options, init=init, seed=0)
    x = torch.randn(2, 8, 13, 12, dtype=dtype, requires_grad=True)
    for training in (True, False):
        conv.train(training)
        y, expected = conv(x), by_hand(conv, x, padding)
        assert relative_error(y, expected) <= TOLERANCE[dtype]
        grad = torch.randn_like(y)
        dx, want = (torch.autograd.grad(t, x, grad)[0] for t in (y, expected))
        assert relative_error(dx, want) <= TOLERANCE[dtype]
    with torch.no_grad():
        assert relative_error(conv(x), expected) <= TOLERANCE[dtype]
        assert relative_error(conv(x[0]), expected[0]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("mode", [{}, {"learn_coeff": True}, {"pointwise": True}], ids=str)
def test_gradients_of_all_that_is_learned(mode: dict[str, Any]) -> None:
    conv = FixedConv2d(3, 8, 3, padding=1, init="ghaar", seed=0, dilations=(1, 2), dtype=torch.float64, **mode)
    names, learned = zip(*conv.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(conv, dict(zip(names, parameters, strict=True)), x)

    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *learned))


@pytest.mark.parametrize(
    ("dilations", "groups", "levels"),
    [
        ((1,), 1, ((1, 40),)),
        ((2, 4), 1, ((2, 20), (4, 20))),
        ([1, 2, 3], 1, ((1, 20), (2, 10), (3, 10))),
        ((1, 2, 3, 4), 1, ((1, 10), (2, 10), (3, 10), (4, 10))),
        ((1, 2, 3, 4, 5), 1, ((1, 10), (2, 10), (3, 10), (4, 5), (5, 5))),
        ((1, 2, 3), 5, ((1, 24), (2, 8), (3, 8))),
        ((1, 2), 40, ((1, 20), (2, 20))),
    ],
)
def test_split_as_the_paper_does(dilations: Any, groups: int, levels: Any) -> None:
    assert FixedConv2d(40, 40, 3, groups=groups, seed=0, dilations=dilations).levels == levels


def test_what_cannot_be_split_is_told() -> None:
    for dilations in ((), (0, 1), (1.0, 2), (1,) * 6, 2, "12", (True, 2)):
        with pytest.raises(ValueError, match="dilations must be 1 to 5 positive integers, got "):
            FixedConv2d(8, 8, 3, dilations=dilations)  # type: ignore[arg-type]
    for options, message in (
        ({"dilation": 2}, r"dilation must be 1 with dilations, got \(2, 2\)"),
        ({"kernel_size": 4}, r"dilations need a kernel of odd size, got \(4, 4\)"),
        ({"out_channels": 3}, r"dilations \(1, 2, 3\) need out_channels of at least 4, got 3"),
        ({"groups": 2}, r"dilations \(1, 2, 3\) need groups of at least 4, got 2"),
    ):
        settings: dict[str, Any] = {"in_channels": 8, "out_channels": 8, "kernel_size": 3} | options
        with pytest.raises(ValueError, match=message):
            FixedConv2d(**settings, dilations=(1, 2, 3))
        with pytest.raises(ValueError, match=message):
            CoConv2d(**settings, dilations=(1, 2, 3))


def test_signals_have_one_dilation() -> None:
    with pytest.raises(ValueError, match="dilations are not for Conv1d, which is no Conv2d"):
        efx.FixedConv1d(8, 8, 3, dilations=(1, 2))


@pytest.mark.parametrize("init", INITS)
def test_is_saved_loaded_and_copied_as_one_bank(init: str) -> None:
    conv = FixedConv2d(8, 16, 3, padding=1, init=init, seed=0, dilations=(1, 2, 3))
    plain = FixedConv2d(8, 16, 3, padding=1, init=init, seed=0)
    assert conv.bank.recipe == plain.bank.recipe
    state = conv.state_dict()
    assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in plain.state_dict().items()}
    x = torch.randn(1, 8, 9, 9)
    expected = conv(x)
    other = FixedConv2d(8, 16, 3, padding=1, init=init, seed=1, dilations=(1, 2, 3))
    assert not torch.allclose(other(x), expected)
    other.load_state_dict(state)
    buffer = io.BytesIO()
    torch.save(conv, buffer)
    buffer.seek(0)
    whole = torch.load(buffer, weights_only=False)
    for again in (other, copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), whole):
        assert again.levels == conv.levels
        assert torch.equal(again(x), expected)
        assert again.state_dict().keys() == state.keys()
    assert relative_error(conv.double()(x.double()), expected.double()) <= TOLERANCE[torch.float32]


def test_another_bank_takes_the_place_of_the_first() -> None:
    conv = FixedConv2d(8, 16, 3, padding=1, seed=0, dilations=(1, 2))
    conv.eval()
    x, w = torch.randn(1, 8, 9, 9), torch.randn(16, 8, 3, 3)
    with torch.no_grad():
        conv(x)  # an evaluated layer keeps weights
        conv.bank = efx.FilterBank.from_weight(w)
        near, far = F.conv2d(x, w[:8], conv.bias[:8], padding=1), F.conv2d(x, w[8:], conv.bias[8:], 1, 2, 2)
        assert relative_error(conv(x), torch.cat([near, far], 1)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("options", [options for options, _ in GEOMETRIES], ids=str)
@pytest.mark.parametrize("mode", [{}, {"learn_coeff": True}, {"pointwise": True}], ids=str)
def test_the_plain_layer_computes_the_same(options: dict[str, Any], mode: dict[str, Any]) -> None:
    options = {"dilations": (1, 2, 3), "dtype": torch.float64} | options
    conv = FixedConv2d(8, 16, **options, **mode, init="ghaar", seed=0)
    x = torch.randn(2, 8, 13, 12, dtype=torch.float64)
    plain = efx.revert(nn.Sequential(copy.deepcopy(conv)), requires_grad=True)[0]
    assert type(plain) is (nn.Conv2d if mode.get("pointwise") else CoConv2d)
    assert relative_error(plain(x), conv(x)) < 1e-12
    assert plain.weight.requires_grad
    again = FixedConv2d.from_conv2d(copy.deepcopy(plain))
    assert relative_error(again(x), conv(x)) < 1e-12
    assert again.levels == getattr(plain, "levels", ())


def test_a_learned_layer_is_coconv() -> None:
    conv = CoConv2d(8, 16, 3, padding=1, dilations=(1, 2, 3, 4))
    assert conv.weight.numel() == nn.Conv2d(8, 16, 3).weight.numel()
    assert "levels=((1, 4), (2, 4), (3, 4), (4, 4))" in str(conv)
    x = torch.randn(2, 8, 9, 9)
    assert relative_error(conv(x), by_hand(conv, x, (1, 1))) <= TOLERANCE[torch.float32]
    assert torch.equal(copy.deepcopy(conv)(x), conv(x))


def test_patched_forwards_follow_the_levels() -> None:
    conv = nn.Conv2d(4, 8, 3, padding=1)
    kept = conv.forward  # as a library may, before the layer is converted
    model = nn.Sequential(conv)
    efx.convert(model, "dct2", dilations=(1, 2))
    x = torch.randn(1, 4, 7, 7)
    assert torch.equal(kept(x), model(x))
    other = torch.randn(8, 4, 3, 3)
    near, far = F.conv2d(x, other[:4], None, padding=1), F.conv2d(x, other[4:], None, 1, 2, 2)
    assert torch.allclose(conv._conv_forward(x, other, None), torch.cat([near, far], 1))


def test_extra_repr_and_summary_name_the_levels() -> None:
    conv = FixedConv2d(64, 64, 3, padding=1, init="dct2", seed=0, dilations=(1, 2))
    assert "levels=((1, 32), (2, 32))" in str(conv)
    found = efx.summary(nn.Sequential(conv), (1, 64, 8, 8)).layers[0]
    plain = efx.summary(nn.Sequential(FixedConv2d(64, 64, 3, padding=1, init="dct2", seed=0)), (1, 64, 8, 8)).layers[0]
    assert (found.multiply_adds, found.dense_multiply_adds) == (plain.multiply_adds, plain.dense_multiply_adds)
    assert "at dilation 1" in found.kernel
    assert found.kernel.endswith("2")
    dense = FixedConv2d(64, 64, 3, padding=1, seed=0, dilations=(1, 2), plan="dense")
    assert efx.summary(nn.Sequential(dense)).layers[0].kernel == "dense at dilation 1 2"
