"""Relevance: conserved, additive over channels, zennit's own numbers on torchvision's ResNet, and clear errors."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.explained import Geometry, batches, make
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.explain.canonical import fold_norms

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")


class Residual(nn.Module):
    """Norms after convolutions, a skip connection in place, a gate, functional pools; no biases but the norms'."""

    def __init__(self, biases: bool) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4, bias=biases)
        for norm in (self.norm_a, self.norm_b):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias, 0, 0.3 * biases)
            nn.init.normal_(norm.running_mean, 0, 0.3 * biases)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm_a(self.a(x)))
        y = self.norm_b(self.b(x))
        y = y * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(y, 1)))
        y += x
        return self.head(nn.functional.avg_pool2d(torch.relu(y), 2).mean((2, 3)))


def residual(biases: bool = False, init: str = "dct2") -> nn.Module:
    torch.manual_seed(0)
    model = Residual(biases)
    if init != "learned":
        efx.convert(model, init, seed=0)
    return model.double().eval()


def exact() -> Any:
    """The rules with next to nothing in their denominators, so that nothing is absorbed there."""
    pytest.importorskip("zennit", reason='needs the extra "explain"')
    from zennit.composites import LayerMapComposite, layer_map_base
    from zennit.rules import Epsilon
    from zennit.types import Linear

    return LayerMapComposite([*layer_map_base(1e-14), (Linear, Epsilon(epsilon=1e-14))])


X, Y = batches(3)[0]


@pytest.mark.parametrize("init", ["dct2", "learned", "hadamard"])
def test_without_biases_the_heat_adds_up_to_the_logit(init: str) -> None:
    model = residual(init=init)
    found = efx.relevance(model, X, Y, exact())
    logit = model(X).gather(1, Y[:, None])[:, 0].detach()
    assert relative_error(found.explained, logit) < 1e-12
    assert relative_error(found.heat.sum((1, 2)), logit) < 1e-6
    assert relative_error(found.by_layer["a"].sum(1), logit) < 1e-6  # all passes through it
    assert relative_error(efx.relevance(residual(True), X, Y, exact()).heat.sum((1, 2)), logit) > 0.01, (
        "biases take some"
    )
    assert found.heat.shape == (3, 12, 12)
    assert found.by_layer.keys() == {"a", "b"}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "densenet121", "ghostnet_100"])
def test_it_adds_up_in_networks_of_timm(name: str) -> None:
    """With activations inside norms, gates, concatenations and functional pools; none is known by name."""
    timm = pytest.importorskip("timm", reason='needs the extra "demo"')
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4)
    efx.convert(model, "dct2", seed=0, gain="kaiming")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    found = efx.relevance(model.double(), torch.rand(2, 3, 64, 64).double(), 1, exact())
    assert relative_error(found.heat.sum((1, 2)), found.explained) < 1e-3


def test_norms_are_folded_where_nothing_else_takes_the_convolution() -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = self[2](x)
            return y.relu() + (self[1](self[0](x)) + self[3](y))

    torch.manual_seed(0)
    model = Net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double().eval()
    for norm in (model[1], model[3]):
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    folded = copy.deepcopy(model)
    fold_norms(folded, X)
    assert relative_error(folded(X), model(X)) < 1e-14
    assert not folded[1].running_mean.any()
    assert torch.equal(folded[3].running_mean, model[3].running_mean)
    assert torch.equal(folded[2].weight, model[2].weight)


def test_what_has_no_rule_is_named() -> None:
    pytest.importorskip("zennit", reason='needs the extra "explain"')
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4)).double()
    with pytest.warns(UserWarning, match="no rule divides relevance at GroupNorm"):
        efx.relevance(net, X, Y)


@pytest.mark.parametrize("composite", ["gradient", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1"])
def test_parts_of_channels_add_up(composite: str) -> None:
    if composite != "gradient":
        pytest.importorskip("zennit", reason='needs the extra "explain"')
    model = residual(True)
    whole = efx.relevance(model, X, Y, composite).heat

    def part(layer: str, channels: Any) -> Tensor:
        return efx.relevance(model, X, Y, composite, layer=layer, channels=channels).heat

    assert relative_error(part("a", [0, 3]) + part("a", [1, 2, 4, 5, 6, 7]), whole) < 1e-10
    assert relative_error(part("norm_a", range(8)), whole) < 1e-10
    branch = part("b", range(8))
    assert relative_error(branch, whole) > 0.01, "the skip connection leads around it"
    assert relative_error(part("b", range(5)) + part("b", range(5, 8)), branch) < 1e-10
    assert not part("b", []).any()


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_plus_flat"])
def test_on_resnet_the_numbers_are_those_of_zennits_canonizer(composite: str) -> None:
    pytest.importorskip("zennit", reason='needs the extra "explain"')
    torchvision = pytest.importorskip("torchvision")
    from zennit.composites import COMPOSITES
    from zennit.torchvision import ResNetCanonizer

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    efx.convert(model, "dct2", seed=0)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 50, 100)  # dct2 filters triple the spread at every layer
        nn.init.normal_(norm.bias, 0, 0.1)
        norm.eps = 1e-12  # zennit's canonizer leaves it in the norm that it has folded
    x, y = torch.rand(2, 3, 32, 32).double(), torch.tensor([1, 3])
    model = model.double().eval()
    images = x.clone().requires_grad_()
    with COMPOSITES[composite](canonizers=[ResNetCanonizer()]).context(efx.plain(model)) as canonical:
        output = canonical(images)
        (expected,) = torch.autograd.grad(output, images, output * nn.functional.one_hot(y, 4))
    assert relative_error(efx.relevance(model, x, y, composite).heat, expected.sum(1)) < 1e-5


def test_zennit_on_the_converted_model_itself_is_wrong_without_an_error() -> None:
    """Its rules clamp Parameters, and a fixed layer has no weight among them. Where this fails, zennit has changed."""
    pytest.importorskip("zennit", reason='needs the extra "explain"')
    from zennit.composites import EpsilonPlus

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2))
    efx.convert(net, "dct2", seed=0)

    def heat(model: nn.Module) -> Tensor:
        x = X.float().requires_grad_()
        with EpsilonPlus().context(model) as ruled:
            (found,) = torch.autograd.grad(ruled(x)[:, 0].sum(), x)
        return found.sum(1)

    assert relative_error(net(X.float()), efx.plain(net)(X.float())) < 1e-5
    assert relative_error(heat(net), heat(efx.plain(net))) > 0.1


def test_gradient_needs_no_zennit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zennit", None)
    monkeypatch.setitem(sys.modules, "zennit.composites", None)
    model = make("dct2", Geometry)
    x = X.clone().requires_grad_()
    efx.plain(model)(x).gather(1, Y[:, None]).sum().backward()
    found = efx.relevance(model, X, Y, "gradient")
    assert relative_error(found.heat, (x * x.grad).sum(1)) < 1e-12  # type: ignore[operator]
    with pytest.raises(ImportError, match=r'relevance needs zennit: pip install "explainfix_ext\[explain\]"'):
        efx.relevance(model, X, Y)


def test_targets_of_every_kind() -> None:
    model = make("dct2", Geometry)
    heat = efx.relevance(model, X, torch.full((3,), 2), "gradient").heat
    assert torch.equal(efx.relevance(model, X, 2, "gradient").heat, heat)
    weights = torch.zeros(3, 4)
    weights[:, 2] = 2
    assert relative_error(efx.relevance(model, X, weights.double(), "gradient").heat, 2 * heat) < 1e-12


def test_the_model_stays_as_it_was() -> None:
    pytest.importorskip("zennit", reason='needs the extra "explain"')
    model = residual(True).train()
    before = copy.deepcopy(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    text = str(efx.relevance(model, X, Y))
    assert text.splitlines()[1].split()[:2] == ["a", "8"]
    assert "epsilon_plus_flat: the heat maps add up to" in text
    assert [type(m) for m in model.modules()] == kinds
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items() if "extra" not in k)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"x": X[0]}, ValueError, r"x must be images \(N, C, H, W\), got shape \[3, 12, 12\]"),
        ({"x": X.long()}, TypeError, "x must be a floating tensor of images, got torch.int64"),
        ({"x": [1]}, TypeError, r"x must be a floating tensor of images, got \[1\]"),
        ({"target": 4}, ValueError, "target must be classes from 0 to 3, got 4"),
        (
            {"target": Y[:2]},
            ValueError,
            r"target must be integer classes of shape \[3\], or floating .*got int64 \[2\]",
        ),
        ({"target": Y.double()}, ValueError, r"got float64 \[3\]"),
        ({"layer": "a"}, ValueError, "layer and channels must be given together"),
        ({"channels": [1]}, ValueError, "layer and channels must be given together"),
        ({"layer": "aa", "channels": [1]}, ValueError, "unknown layer 'aa'; nearest: a"),
        ({"layer": "a", "channels": [8]}, ValueError, r"channels of a must be integers from 0 to 7, got \[8\]"),
        ({"composite": "epsilon_pluss"}, ValueError, "unknown composite 'epsilon_pluss'; nearest: epsilon_plus"),
        ({"composite": "epsilon_gamma_box"}, ValueError, "needs arguments: pass zennit.composites.EpsilonGammaBox"),
        ({"composite": 3}, TypeError, 'composite must be a name, a composite of zennit or "gradient", got 3'),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    if "composite" in arguments:
        pytest.importorskip("zennit", reason='needs the extra "explain"')
    with pytest.raises(kind, match=message):
        efx.relevance(**({"model": residual(), "x": X, "target": Y, "composite": "gradient"} | arguments))


def test_a_picture_has_an_image_and_a_map_in_a_row() -> None:
    pytest.importorskip("matplotlib", reason='needs the extra "demo"')
    found = efx.relevance(residual(), X, Y, "gradient")
    axes = found.plot().axes
    assert [a.get_title() for a in axes[:2]] == ["image 0", "gradient"]
    assert len(axes) == 6
    assert torch.equal(torch.as_tensor(axes[1].images[0].get_array()), found.heat[0].float())


def test_an_output_without_a_gradient_is_an_error() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    net = make("learned", Geometry)
    with pytest.raises(ValueError, match="model gives an output that does not depend on x: is it detached"):
        efx.relevance(nn.Sequential(net, Detached()), X, Y, "gradient")
