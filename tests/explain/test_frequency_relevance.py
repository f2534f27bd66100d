"""Frequency maps: exact, additive over bands, golden values, the layer that is chosen, and clear errors."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.explained import KINDS, Geometry, Shapes, batches, make
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.explain.frequency_relevance import bits_of_place

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")
X, Y = batches(3)[0]
FUNCTIONS = efx.dct_basis((3, 3))[efx.frequency_order((3, 3))]  # B_0 to B_8, from low to high frequency


def input_and_gradient(model: nn.Module, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output without bias, dc/dy, and x * dc/dx summed over channels, by plain autograd."""
    copied = efx.plain(model)
    conv, kept = copied.get_submodule(layer), []
    conv.register_forward_hook(lambda m, args, y: kept.append(y) or y.clone())
    x = X.clone().requires_grad_()
    cost = copied(x).gather(1, Y[:, None]).sum()
    dy, dx = torch.autograd.grad(cost, [kept[0], x])
    y = kept[0].detach() - (0 if conv.bias is None else conv.bias.detach()[:, None, None])
    return y, dy, (x * dx).sum(1).detach()


def each_function(model: nn.Module, layer: str) -> dict[str, list[int]]:
    kernel = model.get_submodule(layer).kernel_size
    return {str(k): [k] for k in range(math.prod(kernel))}


@pytest.mark.parametrize("kind", [*KINDS, "ghaar4_s1", "hadamard", "learned", "frozen"])
@pytest.mark.parametrize("layer", ["a", "b", "c", "d"])  # stride 2; "same", groups, dilation; reflection; depthwise
def test_amounts_and_maps_add_up(kind: str, layer: str) -> None:
    model = make(kind, Geometry)
    y, dy, whole = input_and_gradient(model, layer)
    for bands in (("constant", "low", "high"), each_function(model, layer)):
        found = efx.frequency_relevance(model, X, Y, layer, bands)
        assert relative_error(sum(found.amount.values()), (y * dy).flatten(1).sum(1)) < 1e-12
        assert relative_error(sum(found.map.values()), whole) < 1e-12
    assert relative_error(sum(found.share.values()), torch.ones(3)) < 1e-12


def test_of_a_first_layer_the_map_adds_up_to_the_amount() -> None:
    found = efx.frequency_relevance(make("dct2", Geometry), X, Y, "a")
    for band, amount in found.amount.items():
        assert relative_error(found.map[band].sum((1, 2)), amount) < 1e-12


def one_layer(weight: Tensor) -> nn.Module:
    """A convolution of one channel, and a linear layer whose weights are dc/dy."""
    conv = nn.Conv2d(1, 1, 3, bias=False).double()
    conv.weight.data = weight[None, None]
    return nn.Sequential(conv, nn.Flatten(), nn.Linear(100, 4, bias=False).double())


def test_golden_a_filter_of_two_functions() -> None:
    """W = B_1 + 2 B_8: amounts are <B_1*x, g> and 2 <B_8*x, g>, and all others are zero."""
    torch.manual_seed(0)
    net, x = one_layer(FUNCTIONS[1] + 2 * FUNCTIONS[8]), X[:, :1]
    g = net[2].weight.detach()[Y].reshape(3, 1, 10, 10)
    found = efx.frequency_relevance(net, x, Y, "0", each_function(net, "0"))
    for k, factor in ((1, 1), (8, 2)):
        expected = factor * (F.conv2d(x, FUNCTIONS[k][None, None]) * g).sum((1, 2, 3))
        assert relative_error(found.amount[str(k)], expected) < 1e-12
    others = torch.stack([found.amount[str(k)] for k in range(9) if k not in (1, 8)])
    assert float(others.abs().max()) < 1e-12 * float(found.amount["8"].abs().max())


def test_where_the_image_has_all_functions_alike_the_order_is_explainsteers() -> None:
    """dc/dW[o, i] = g_o * sum_l B_l: both are sum_oi g_o <W[o, i], B_l> times a number, as no term is negative."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3, bias=False), nn.Flatten(), nn.Linear(5, 1, bias=False)).double()
    net[0].weight.data = torch.einsum("oil,lhw->oihw", torch.rand(5, 2, 9).double(), FUNCTIONS)
    net[2].weight.data = torch.rand(1, 5).double()
    x = FUNCTIONS.sum(0).expand(1, 2, 3, 3)
    amount = torch.cat(list(efx.frequency_relevance(net, x, 0, "0", each_function(net, "0")).amount.values()))
    energy = efx.explainsteer(net, [(x, torch.zeros(1, dtype=torch.long))]).ed["0"]
    assert relative_error(energy / energy.sum(), amount / amount.sum()) < 1e-12


@pytest.mark.parametrize("kind", ["learned", "dct2", "hadamard"])
def test_golden_a_constant_image_has_the_constant_function_alone(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4))
    if kind != "learned":
        efx.convert(net, kind, seed=0)
    x = torch.tensor([0.3, 0.7, 1.0])[:, None, None, None].expand(3, 3, 12, 12).double()
    found = efx.frequency_relevance(net.double(), x, Y, "0")
    assert all(float(found.amount[band].abs().max()) < 1e-12 for band in ("low", "high"))
    assert relative_error(found.share["constant"], torch.ones(3)) < 1e-12


def test_ghaar4_has_four_functions_and_its_highest_is_the_lowest_of_the_band() -> None:
    model = make("ghaar4_s1", Geometry)
    amount = efx.frequency_relevance(model, X, Y, "a", each_function(model, "a")).amount
    whole = sum(a.abs() for a in amount.values())
    used = [k for k in range(9) if float((amount[str(k)].abs() / whole).max()) > 1e-10]
    assert used == [0, 1, 2, 5]  # (0, 0), (0, 1), (1, 0), (1, 1)
    found = efx.frequency_relevance(model, X, Y, "a")
    assert found.bands == {"constant": [0], "low": [1, 2], "high": [3, 4, 5, 6, 7, 8]}
    assert relative_error(found.amount["high"], amount["5"]) < 1e-12


def test_a_skip_connection_is_left_out() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x + F.relu(self.conv(x))).mean((2, 3)))

    torch.manual_seed(0)
    model = Skip().double()
    x = X.clone().requires_grad_()
    model.head(F.relu(model.conv(x)).mean((2, 3))).gather(1, Y[:, None]).sum().backward()
    maps = efx.frequency_relevance(model, X, Y, "conv").map
    assert relative_error(sum(maps.values()), (x * x.grad).sum(1)) < 1e-12  # type: ignore[operator]


def test_a_layer_that_runs_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(F.relu_(self.conv(x))).mean((2, 3)))

    torch.manual_seed(0)
    model = Twice().double()
    found = efx.frequency_relevance(model, X, Y, "conv")
    y1 = model.conv(X)
    y2 = model.conv(F.relu(y1))
    w = model.head.weight[Y][:, :, None, None] / 144
    g2 = w.expand_as(y2)
    g1 = F.conv_transpose2d(g2, model.conv.weight, padding=1) * (y1 > 0)
    bias = model.conv.bias[:, None, None]
    expected = ((y1 - bias) * g1 + (y2 - bias) * g2).sum((1, 2, 3))
    assert relative_error(sum(found.amount.values()), expected.detach()) < 1e-12


@pytest.mark.parametrize("kind", ["learned", "dct2"])
def test_an_input_that_is_overwritten_later_counts_as_it_was(kind: str) -> None:
    class Overwriting(nn.Module):
        def __init__(self, overwrites: bool) -> None:
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Linear(4, 4)
            self.overwrites = overwrites

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.conv(x)
            if self.overwrites:
                x.mul_(0)
            return self.head(F.relu_(y).mean((2, 3)))

    found = []
    for overwrites in (True, False):
        torch.manual_seed(0)
        model = Overwriting(overwrites)
        if kind != "learned":
            efx.convert(model, kind, seed=0)
        found.append(efx.frequency_relevance(model.double(), X, Y, "conv"))
    assert all(torch.equal(found[0].amount[band], amount) for band, amount in found[1].amount.items())
    assert all(torch.equal(found[0].map[band], pixels) for band, pixels in found[1].map.items())


def test_bits_of_place() -> None:
    left, right = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    left[:, :, :2], right[:, :, 2:] = 1, -1
    assert float(bits_of_place({"a": left, "b": right})) == pytest.approx(1)
    assert float(bits_of_place({"a": left, "b": 3 * left})) == pytest.approx(0)
    assert float(bits_of_place({"a": left, "b": 0 * left})) == 0
    assert float(bits_of_place({"a": 0 * left})) == 0
    # a quarter of the mass in the other half: I = H(1/4), as each place belongs to one band
    expected = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert float(bits_of_place({"a": 3 * left, "b": right})) == pytest.approx(expected)


def test_the_layer_is_chosen_whose_bands_differ_most() -> None:
    model = make("learned", Geometry)
    found = efx.frequency_relevance(model, X, Y)
    bits = {name: float(bits_of_place(efx.frequency_relevance(model, X, Y, name).map).mean()) for name in "abcd"}
    assert found.bits == pytest.approx(bits)
    assert found.layer == max(bits, key=bits.__getitem__)
    one = efx.frequency_relevance(model, X, Y, found.layer)
    assert all(torch.equal(one.map[band], found.map[band]) for band in found.map)
    assert f"layer {found.layer}: its bands differ by {bits[found.layer]:.3f} bits" in str(found)


def test_kernels_of_every_shape_are_tried() -> None:
    found = efx.frequency_relevance(make("learned", Shapes), X, Y)
    assert found.bits.keys() == {"square", "row", "wide", "deep", "even"}


def test_the_model_stays_as_it_was_also_after_an_error() -> None:
    model = make("dct2", Geometry).train()
    before = copy.deepcopy(model.state_dict())
    efx.frequency_relevance(model, X, Y)
    with pytest.raises(RuntimeError):  # the model does not take such images
        efx.frequency_relevance(model, X[:, :2], Y)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items() if "extra" not in k)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "aa"}, "unknown layer 'aa'; nearest: a"),
        ({"layer": "mix"}, "unknown layer 'mix'"),  # a 1x1 has no frequencies
        ({"bands": ("low", "middle")}, r"bands must be some of constant, low, high, or name -> functions, got \('low'"),
        ({"bands": "low"}, "bands must be some of"),
        ({"bands": {"one": [9]}}, "bands of a must hold functions from 0 to 8, each once, got"),
        ({"bands": {"one": [1], "two": [2, 1]}}, "bands of a must hold functions from 0 to 8, each once, got"),
        ({"x": X[0]}, r"x must be images \(N, C, H, W\)"),
        ({"target": 4}, "target must be classes from 0 to 3, got 4"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        efx.frequency_relevance(**({"model": make("dct2", Geometry), "x": X, "target": Y, "layer": "a"} | arguments))


def test_layers_that_cannot_be_taken_apart_are_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(400, 4))
    with pytest.raises(ValueError, match="layer '0' cannot be taken apart: its weight is parametrized"):
        efx.frequency_relevance(model.double(), X, Y, "0")
    with pytest.raises(ValueError, match="model has no spatial convolution whose filters can be taken apart"):
        efx.frequency_relevance(model, X, Y)


def test_a_picture_has_a_map_for_each_band() -> None:
    pytest.importorskip("matplotlib", reason='needs the extra "demo"')
    axes = efx.frequency_relevance(make("dct2", Geometry), X, Y, "a").plot().axes
    assert [a.get_title() for a in axes[:4]] == ["image 0", "constant", "low", "high"]
    limits = {a.images[0].get_clim() for a in axes[1:4]}
    assert len(limits) == 1, "one scale for the maps of an image"


def test_an_output_without_a_gradient_is_an_error() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    net = make("learned", Geometry)
    with pytest.raises(ValueError, match="model gives an output that does not depend on x: is it detached"):
        efx.frequency_relevance(nn.Sequential(net, Detached()), X, Y)
