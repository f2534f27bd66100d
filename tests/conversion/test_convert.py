"""convert: what it replaces, what stays, what it reports, warns of and refuses."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.zoo import convert_quietly, make, output
from torch import nn

import explainfix_ext as efx
from explainfix_ext import FilterBank, FixedConv2d, convert, revert

tv = pytest.importorskip("torchvision", reason="torchvision (extra `models`) is not installed").models


class Net(nn.Module):
    """A bit of everything that a conversion may meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), self.shared)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.tied_a, self.tied_b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.tied_b.weight = self.tied_a.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
        self.lazy = nn.LazyConv2d(8, 3)
        self.sub, self.called = Subclass(8, 8, 3), Called(8, 8, 3)
        self.saver = nn.Sequential(nn.Conv2d(8, 8, 3))
        efx.save_memory(self.saver)
        self.renamed = Renamed(8, 8, 3)
        self.patched = nn.Conv2d(8, 8, 3)
        self.patched.forward = self.patched.forward
        self.slotted = Slotted(8, 8, 3)
        self.complex = nn.Conv2d(8, 8, 3, dtype=torch.complex64)

    def forward(self, x):
        return self.block(self.shared(self.stem(x)))


class Subclass(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Called(nn.Conv2d):
    def __call__(self, x):
        return super().__call__(x).relu()


class Renamed(nn.Conv2d):
    """Overrides nothing that matters."""


class Slotted(nn.Conv2d):
    """Python cannot exchange the class of its objects for one without slots."""

    __slots__ = ("scale",)


def list_of(conv: nn.Conv2d) -> Any:
    return [conv.weight]


def partial_of(conv: nn.Conv2d) -> Any:
    return functools.partial(nn.functional.conv2d, weight=conv.weight)


def closure_of(conv: nn.Conv2d) -> Any:
    weight = conv.weight
    return lambda x: nn.functional.conv2d(x, weight)


def twin_of(conv: nn.Conv2d) -> Any:
    twin = nn.Conv2d(3, 8, 3)
    twin.weight = conv.weight
    return {"not registered": twin}


@pytest.mark.parametrize("hold", [list_of, partial_of, closure_of, twin_of])
def test_a_weight_that_something_else_uses_is_left(hold: Callable[[nn.Conv2d], Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    model.other = nn.Identity()
    model.other.held = hold(model[0])
    report = convert_quietly(model)
    assert [layer.name for layer in report.converted] == ["1"]
    assert report.skipped[0].reason == "its weight is also in other.held, which would go on using it"


def test_optimizers_beside_the_model_do_not_count() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    model.optimizer = torch.optim.SGD(model.parameters())
    assert len(convert_quietly(model).converted) == 1


def test_report_names_what_is_left_and_why() -> None:
    net = Net()
    report = convert_quietly(net)
    assert [layer.name for layer in report.converted] == ["stem", "shared", "renamed"]
    reasons = {layer.name: layer.reason for layer in report.skipped}
    assert reasons["up"] == "spatial, still learned: only a Conv2d or Conv1d can be fixed"
    assert reasons["tied_a"] == reasons["tied_b"] == "its weight is shared with another layer"
    assert reasons["normed"] == "its weight is parametrized"
    assert reasons["lazy"] == "lazy: run the model once, then convert"
    assert reasons["sub"] == "Subclass overrides forward, and explainfix_ext does not know how"
    assert reasons["called"] == "Called overrides __call__, and explainfix_ext does not know how"
    assert reasons["saver.0"] == 'changed by save_memory: call save_memory(model, "off"), then convert'
    assert reasons["patched"] == "its forward was replaced on the instance"
    assert reasons["slotted"] == "Slotted has __slots__"
    assert reasons["complex"] == "its dtype is complex64"
    assert net.block[1] is net.shared, "a module used twice stays one module"
    assert report.pointwise_learned == 1
    text = str(report)
    assert "3 spatial convolutions fixed, 11 left" in text
    assert all(name in text for name in reasons)


def test_report_counts_the_1x1_that_pointwise_adds() -> None:
    counts = [convert(tv.resnet18(), pointwise=True, dry_run=dry).pointwise_learned for dry in (False, True)]
    assert counts == [4 + 17] * 2  # three shortcuts and the classifier, and one for each fixed layer


def test_report_notes_layers_of_patches_that_do_not_overlap() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, stride=2))
    report = convert_quietly(model)
    assert report.patches == ("0",)
    assert "to leave them learned, give exclude=['0']" in str(report)
    assert "exclude" not in str(convert_quietly(nn.Sequential(nn.Conv2d(3, 8, 3))))


def test_parameters_hooks_modes_and_attributes_stay() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1).double().eval()
    conv.note = "kept"
    calls = []
    handle = conv.register_forward_hook(lambda *a: calls.append(1))
    model = nn.Sequential(conv, nn.BatchNorm2d(8)).double()
    before = {k: id(p) for k, p in model.named_parameters()}
    convert_quietly(model)
    after = {k: id(p) for k, p in model.named_parameters()}
    assert after == {k: v for k, v in before.items() if k != "0.weight"}
    assert not model[0].training
    assert model[0].note == "kept"
    assert model[0].weight.dtype == torch.float64
    model(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    handle.remove()
    model(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert len(calls) == 1
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert model[0] is conv
    assert set(plain.state_dict()) - set(model.state_dict()) == {"0.weight"}


def test_seeds_depend_on_the_name_and_the_seed() -> None:
    def seeds(seed: int) -> list[int]:
        return [layer.seed for layer in convert_quietly(tv.resnet18(), seed=seed).converted]

    assert len(set(seeds(0))) == 17
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


def test_init_by_glob_callable_and_bank() -> None:
    model = tv.resnet18()
    report = convert_quietly(model, {"conv1": "unchanged", "layer[12].*": "ghaar4_s1"})
    assert {layer.name.split(".")[0]: layer.init for layer in report.converted} == {
        "conv1": "unchanged",
        "layer1": "ghaar4_s1",
        "layer2": "ghaar4_s1",
    }
    assert {layer.reason for layer in report.skipped} == {"no glob of init matches"}

    def choose(name: str, conv: nn.Conv2d) -> str | FilterBank | None:
        if name == "conv1":
            return FilterBank.from_weight(conv.weight, rank=3)
        return "psine" if conv.stride == (2, 2) else None

    model = tv.resnet18()
    report = convert_quietly(model, choose)
    assert model.conv1.bank.rank == 3
    assert [layer.init for layer in report.converted] == ["given bank", "psine", "psine", "psine"]
    assert {layer.reason for layer in report.skipped} == {"init returned None"}


def test_include_and_exclude() -> None:
    report = convert_quietly(tv.resnet18(), include="layer1.*", exclude=["*.conv2"])
    assert [layer.name for layer in report.converted] == ["layer1.0.conv1", "layer1.1.conv1"]


def test_extra_parameters_stay() -> None:
    conv = nn.Conv2d(3, 8, 3)
    conv.gamma = nn.Parameter(torch.ones(8))
    model = nn.Sequential(conv)
    convert_quietly(model)
    assert model[0].gamma is conv.gamma
    assert list(revert(model).state_dict()) == ["0.weight", "0.bias", "0.gamma"]


def test_dry_run_changes_nothing() -> None:
    model = tv.resnet18()
    keys = list(model.state_dict())
    assert len(convert(model, dry_run=True).converted) == 17
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "dct3"}, "unknown init 'dct3'; nearest: dct2"),
        ({"init": {"*": "dct3"}}, "unknown init 'dct3'"),
        ({"density": 2}, "density must be in"),
        ({"pointwis": True}, "unknown option of convert 'pointwis'; nearest: pointwise"),
        ({"init": "dct2", "energy": 0.5}, "init 'dct2' takes no option 'energy'"),
        ({"terms": 2}, "init \"auto\" takes no option 'terms', .*: name one that does: hadamard"),
        ({"init": 5}, "init must be a name, a dict of globs to names, or a callable, got int"),
        ({"init": lambda name, conv: [1]}, "conv1: bank must be a FilterBank .* got list"),
        ({"include": "layre*"}, "include must match a spatial convolution, such as conv1, got 'layre"),
        (
            {"init": lambda name, conv: "ones" if name == "conv1" else efx.make_bank("ones", 1, 1, 3, seed=0)},
            "bank must",
        ),
    ],
)
def test_a_failed_conversion_changes_nothing(options: dict[str, Any], message: str) -> None:
    model = tv.resnet18()
    before = {k: id(v) for k, v in model.named_parameters()}
    with pytest.raises((ValueError, TypeError), match=message):
        convert(model, **options)
    assert {k: id(v) for k, v in model.named_parameters()} == before


def test_nothing_to_convert() -> None:
    with pytest.raises(ValueError, match="no spatial Conv2d"):
        convert(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(TypeError, match="model must be an nn.Module, got 'resnet18'"):
        convert("resnet18")
    with pytest.raises(TypeError, match="from_conv2d"):
        convert(nn.Conv2d(3, 3, 3))
    with pytest.raises(TypeError, match="to_conv2d"):
        revert(FixedConv2d(3, 3, 3))
    model = nn.Sequential(FixedConv2d(3, 3, 3))
    with pytest.raises(ValueError, match="fixed already"):
        convert(model)


def test_warns_where_little_is_left_to_learn() -> None:
    with pytest.warns(UserWarning, match="pointwise=True"):
        convert(tv.resnet18())
    with pytest.warns(UserWarning, match="20 convolutions|13 convolutions"):
        convert(tv.vgg16_bn())
    for model, options in ((tv.resnet50(), {}), (tv.efficientnet_b0(), {}), (tv.resnet18(), {"pointwise": True})):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            convert(model, **options)


def test_pointwise_and_learned_coefficients_learn() -> None:
    for options, name in (({"pointwise": True}, "pointwise"), ({"learn_coeff": True}, "coeff")):
        model, x = make("resnet18", init="dct2", **options)
        output(model, x).sum().backward()
        learned = [p for n, p in model.named_parameters() if n.endswith(name)]
        assert len(learned) == 17
        assert all(p.grad.abs().sum() > 0 for p in learned)


def test_density_leaves_stems_and_depthwise_layers_whole() -> None:
    """Layers of fewer than 4 inputs a group, whose filters are those of density 1; alone, a layer takes any density."""

    def network() -> nn.Sequential:
        layers = (nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 16, 3, groups=4))
        return nn.Sequential(*layers, nn.Conv2d(16, 64, 1), nn.Linear(64, 8))

    thin, whole = network(), network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        efx.convert(thin, "dct2", density=0.25, seed=0)
        efx.convert(whole, "dct2", seed=0)
    assert [thin[i].bank.density for i in range(3)] == [1, 1, 0.25]
    assert all(torch.equal(thin[i].bank.index, whole[i].bank.index) for i in range(2))
    assert thin[0].bank.recipe == whole[0].bank.recipe
    again = network()
    efx.convert(again, "dct2", seed=1, density=0.25)
    again.load_state_dict(thin.state_dict())
    assert all(torch.equal(again[i].bank.index, thin[i].bank.index) for i in range(3))
    assert efx.FixedConv2d(3, 16, 3, init="dct2", density=0.25, seed=0).bank.density == 0.25


def test_a_density_that_changes_nothing_is_warned_of() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 64, 1), nn.Linear(64, 8))
    with pytest.warns(UserWarning, match="density=0.1 leaves every filter: no layer has 4 inputs a group"):
        efx.convert(model, "dct2", density=0.1, seed=0)


# include_pointwise ----------------------------------------------------------------------------------------------------


def small_bottleneck() -> nn.Sequential:
    """A spatial convolution between 1x1, a depthwise one, a gate's 1x1 of few inputs, and a head."""
    layers = [nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, groups=32)]
    return nn.Sequential(*layers, nn.Conv2d(32, 4, 1), nn.Flatten(), nn.LazyLinear(2))


def test_include_pointwise_fixes_1x1_as_auto_whatever_the_name() -> None:
    for init in ("auto", "dct2", "ghaar4_s1"):
        model, x = small_bottleneck(), torch.randn(2, 3, 8, 8)
        weights = [model[at].weight.detach().clone() for at in (0, 2, 4)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report = convert(model, init, include_pointwise=True, seed=0)
        inits = {layer.name: layer.init for layer in report.converted}
        assert (inits["0"], inits["2"], inits["4"]) == ("ghaar4_s1", "hadamard", "hadamard")
        assert inits["1"] == ("hadamard" if init == "auto" else init)
        assert (report.pointwise_learned, report.pointwise_fixed, report.patches) == (1, 3, ())
        assert "2 spatial convolutions fixed and 3 1x1, 0 left; 1 learned 1x1 or linear" in str(report)
        model(x)
        learned = {name for name, _ in model.named_parameters()}
        assert learned == {*(f"{at}.bias" for at in range(5)), "6.weight", "6.bias"}
        assert not any(torch.equal(model[at].weight, w) for at, w in zip((0, 2, 4), weights, strict=True))


def test_a_fixed_1x1_mixes_without_loss() -> None:
    """Its columns are orthogonal, and He's rule holds; the equivalent PyTorch is the 1x1 of that weight."""
    model, x = nn.Sequential(nn.Conv2d(16, 32, 1)), torch.randn(2, 16, 5, 5)
    convert(model, include_pointwise=True, seed=0)
    mix = model[0].weight.double().flatten(1)
    torch.testing.assert_close(mix.T @ mix, 4 * torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(mix.square().sum(1), torch.full((32,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(model(x), nn.functional.conv2d(x, model[0].weight, model[0].bias), atol=1e-5, rtol=0)
    fresh = nn.Sequential(nn.Conv2d(16, 32, 1))
    convert(fresh, include_pointwise=True, seed=1)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert torch.allclose(revert(copy.deepcopy(model))(x), model(x), atol=1e-5)


def test_include_pointwise_with_filters_of_the_model_or_by_layer() -> None:
    model = small_bottleneck()
    weight = model[2].weight.detach().clone()
    convert(model, "unchanged", include_pointwise=True, energy=0.5)
    assert torch.equal(model[2].weight, weight)
    model = small_bottleneck()
    report = convert(model, {"2": "identity", "[13]": "dct2"}, include_pointwise=True, exclude="3", density=0.5)
    assert {layer.name: layer.init for layer in report.converted} == {"1": "dct2", "2": "identity"}
    assert [(layer.name, layer.reason) for layer in report.skipped] == [
        ("0", "no glob of init matches"), ("3", "excluded"), ("4", "no glob of init matches"),
    ]  # fmt: skip
    assert report.pointwise_learned == 3  # 0, 4 and the head
    assert model[2].bank.density == 1  # options are for spatial layers
    assert model[1].bank.density == 0.5


def test_models_converted_before_get_their_1x1_fixed() -> None:
    model = small_bottleneck()
    convert(model, seed=0)
    before = model[1].bank
    report = convert(model, include_pointwise=True, seed=0)
    assert [layer.name for layer in report.converted] == ["0", "2", "4"]
    assert model[1].bank is before


@pytest.mark.parametrize("option", ["pointwise", "learn_coeff"])
def test_1x1_cannot_be_fixed_and_learned(option: str) -> None:
    model = small_bottleneck()
    with pytest.raises(ValueError, match="include_pointwise fixes the 1x1 layers: leave out pointwise and learn_coeff"):
        convert(model, include_pointwise=True, **{option: True})
    assert type(model[0]) is nn.Conv2d
