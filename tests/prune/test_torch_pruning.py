"""backend="torch_pruning": models that torch.fx cannot trace, and what Torch-Pruning gets wrong."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.bench_networks import randomise_norms
from support.nets import HELD, PRUNABLE, Net, Untraceable, check_same_state, state_of
from support.nets import images as small_images
from torch import Tensor, nn

import explainfix_ext as efx

pytest.importorskip("torch_pruning")
pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")

OPTIONS: dict[str, Any] = {
    "criterion": "l1",
    "granularity": "channel",
    "scope": "layer",
    "bn_bias": "drop",
    "backend": "torch_pruning",
}


def depends_on_data(x: Tensor) -> bool:
    """torch.fx cannot trace what asks this."""
    return bool(x.isfinite().all())


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)
        self.down: nn.Module = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))) + self.down(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 24), BasicBlock(24, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        if depends_on_data(x):
            x = self.blocks(x)
        return self.head(x.mean((2, 3)))


class Vgg(nn.Module):
    """A channel is several columns of the linear layer behind flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.fc, self.head = nn.Linear(12 * 4 * 4, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), 2)
        x = F.adaptive_avg_pool2d(x, 4) if depends_on_data(x) else x
        return self.head(F.relu(self.fc(torch.flatten(x, 1))))


class Mobile(nn.Module):
    """Depthwise layers are all that is spatial; squeeze and excitation ties a gate to their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32)
        self.depthwise, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.project, self.head = nn.Conv2d(32, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.bn2(self.depthwise(F.relu(self.bn1(self.expand(x))))))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))).sigmoid()
        if depends_on_data(gate):
            y = y * gate
        return self.head((x + self.project(y)).mean((2, 3)))


class Mixed(nn.Module):
    """Concatenation, a Parameter for each channel, PReLU, InstanceNorm, a transposed convolution, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1), nn.PReLU(12)
        self.scale, self.norm = nn.Parameter(torch.rand(1, 20, 1, 1) + 0.5), nn.InstanceNorm2d(8, affine=True)
        self.up, self.c = nn.ConvTranspose2d(20, 8, 2, 2), nn.Conv2d(8 + 3, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.act(self.a(x))
        y = torch.cat([y, self.norm(self.b(y))], 1) * self.scale
        y = F.relu(self.c(torch.cat([self.up(y), F.interpolate(x, scale_factor=2)], 1)))
        return {"map": self.head(y), "score": y.mean() if depends_on_data(y) else y.sum()}


class Flipped(Net):
    """Torch-Pruning takes flip for an operation that leaves every channel where it is."""

    def middle(self, x: Tensor) -> Tensor:
        return x.flip(1) if depends_on_data(x) else x


class Shuffled(Net):
    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w) if depends_on_data(x) else x


class Branches(nn.Module):
    """One of two layers runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(8, 4)
        self.bright, self.dark = nn.Conv2d(16, 8, 3), nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bright if x.mean() > 0.25 else self.dark
        return self.head(branch(F.relu(self.stem(x))).mean((2, 3)))


class Frozen(nn.Module):
    """Its features get no gradients: autograd does not see them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.b(F.relu(self.a(x)))
        return self.head(x.mean((2, 3))) if depends_on_data(x) else x


NETS = {"resnet": ResNet, "vgg": Vgg, "mobile": Mobile, "mixed": Mixed}
KINDS: dict[str, dict[str, Any] | None] = {
    "learned": None,
    "converted": {},
    "coefficients": {"learn_coeff": True},
    "pointwise": {"pointwise": True},
}


def made(make: Callable[[], nn.Module], kind: str = "learned") -> nn.Module:
    torch.manual_seed(0)
    model = randomise_norms(make()).eval()
    if (options := KINDS[kind]) is not None:
        efx.convert(model, "dct2", seed=0, **options)
    return model


images = partial(small_images, size=16)


def gone(report: efx.PruneReport, name: str) -> int:
    """Output channels that a layer lost."""
    return report.before[name].out_channels - report.after[name].out_channels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETS)
def test_channels_go_and_nothing_else_changes(name: str, kind: str) -> None:
    model = made(NETS[name], kind)
    before = state_of(model)
    with pytest.raises(ValueError, match="cannot be traced by torch.fx"):
        efx.channelprune(model, images(), amount=0.5, criterion="l1", backend="fx")
    for bn_bias in ("keep", "drop"):
        for agree in ("all", "any"):
            report = efx.channelprune(model, images(), amount=0.7, **OPTIONS | {"bn_bias": bn_bias, "agree": agree})
            assert report.model is not None
            fresh = efx.apply_plan(made(NETS[name], kind), report.plan)
            fresh.load_state_dict(report.model.state_dict())
            assert report.verify_error is None or report.verify_error < 1e-5
            if bn_bias == "drop" and kind != "pointwise":
                assert report.verify_error is not None
                assert report.parameters[1] < 0.8 * report.parameters[0]
    check_same_state(model, before)


def test_the_layers_that_lose_channels() -> None:
    resnet = efx.channelprune(made(ResNet), images(), amount=0.7, **OPTIONS)
    assert gone(resnet, "blocks.0.conv1") == 11
    assert ["stem", "blocks.0.conv2"] in resnet.ties
    assert gone(resnet, "stem") == gone(resnet, "blocks.0.conv2") > 0
    assert resnet.protected == {"head": "output of the model"}

    vgg = efx.channelprune(made(Vgg), images(), amount=0.5, **OPTIONS)
    assert gone(vgg, "b") == 6
    assert vgg.after["fc"].in_channels == 6 * 4 * 4

    mobile = efx.channelprune(made(Mobile), images(), amount=0.75, **OPTIONS)
    for name in ("expand", "depthwise", "excite"):
        assert gone(mobile, name) == 24
    assert mobile.after["project"].in_channels == 8

    mixed = efx.channelprune(made(Mixed), images(), amount=0.5, **OPTIONS)
    assert gone(mixed, "a") == 6
    assert len(mixed.plan["tensors"]["scale"]["kept"]) == 20 - 6 - 4
    assert {"act", "norm"} <= mixed.plan["per_channel"].keys()
    assert mixed.after["c"].in_channels == 11  # rows of the ConvTranspose are not zero
    assert "head" in mixed.protected
    assert mixed.protected["c"] == "output of the model"  # the mean of all its channels is one


def test_frozen_model_loses_as_much() -> None:
    """Torch-Pruning alone sees nothing of a model without gradients, and does nothing."""
    learned, frozen = (made(ResNet).requires_grad_(learns) for learns in (True, False))
    reports = [efx.channelprune(model, images(), amount=0.7, **OPTIONS) for model in (learned, frozen)]
    assert reports[0].plan == reports[1].plan
    assert reports[1].parameters[1] < 0.5 * reports[1].parameters[0]
    assert reports[1].model is not None
    assert not any(p.requires_grad for p in reports[1].model.parameters())
    with torch.no_grad():
        assert efx.channelprune(frozen, images(), amount=0.7, **OPTIONS).plan == reports[0].plan


@pytest.mark.parametrize("name", ["plain", "gate", "transposed", "flatten_linear"])
def test_same_cut_as_fx(name: str) -> None:
    """Of a model that both can follow, with the same filters zero."""
    model = made(PRUNABLE[name])
    scores = {n: torch.rand(m.weight.shape[:2]) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for score in scores.values():
        score[::2] += 100
    options = OPTIONS | {"criterion": scores, "granularity": "filter", "amount": 0.5}
    plans = [efx.channelprune(model, images(size=8), **options | {"backend": b}).plan for b in ("fx", "torch_pruning")]
    assert plans[0]["layers"]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("net", [Flipped, Shuffled])
def test_what_torch_pruning_gets_wrong_is_refused(net: type[nn.Module]) -> None:
    model = made(net)
    before = state_of(model)
    for inplace in (False, True):
        with pytest.raises(ValueError, match="differs from the masked one|does not run"):
            efx.channelprune(model, images(), amount=0.5, inplace=inplace, **OPTIONS)
    check_same_state(model, before)


@pytest.mark.parametrize("name", [*PRUNABLE, *HELD])
def test_proved_or_refused(name: str) -> None:
    """Whatever a network does with its channels: the model is right, or it is as before."""
    found: Any = PRUNABLE.get(name) or HELD[name]
    model = made(found[0] if name in HELD else found)
    before = state_of(model)
    for options in ({"bn_bias": "keep"}, {"agree": "all"}, {"agree": "any"}):
        try:
            report = efx.channelprune(model, images(size=8), amount=0.6, **OPTIONS | options)
        except ValueError:
            check_same_state(model, before)
        else:
            assert report.verify_error is None or report.verify_error < 1e-5


def test_constants() -> None:
    """Channels of zero filters are what bias and BatchNorm make of nothing: zero behind ReLU if that is negative."""
    model = made(ResNet)
    first: Any = model.get_submodule("blocks.0")
    with torch.no_grad():
        first.conv1.weight[:8] = 0
        first.bn1.running_mean.zero_()
        first.bn1.bias[:4], first.bn1.bias[4:8] = -1, 1
    scores = {"blocks.0.conv1": torch.ones(16, 16)}
    options = OPTIONS | {"criterion": scores, "amount": 0.5, "ignore": ["stem", "blocks.*.conv2", "blocks.[12].*"]}
    kept = efx.channelprune(model, images(), **options | {"bn_bias": "keep"})
    assert kept.plan["layers"]["blocks.0.conv1"]["outputs"] == list(range(4, 16))
    dropped = efx.channelprune(model, images(), **options)
    assert dropped.plan["layers"]["blocks.0.conv1"]["outputs"] == list(range(8, 16))
    with pytest.raises(ValueError, match='bn_bias must be "keep" or "drop" with backend torch_pruning'):
        efx.channelprune(model, images(), **options | {"bn_bias": "fold"})


def test_a_parameter_annuls_nothing() -> None:
    """What is made of Parameters alone is constant, and no channel of zero filters."""

    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(16))

        def middle(self, x: Tensor) -> Tensor:
            return x * self.scale.exp().view(1, -1, 1, 1) if depends_on_data(x) else x

    report = efx.channelprune(made(Scaled), images(), amount=0.5, **OPTIONS)
    assert gone(report, "stem") == 8
    assert len(report.plan["tensors"]["scale"]["kept"]) == 8


def test_round_to_and_min_channels() -> None:
    report = efx.channelprune(made(ResNet), images(), amount=0.7, round_to=4, **OPTIONS)
    assert report.after["blocks.0.conv1"].out_channels == 8  # 5 are left
    assert all(cost.out_channels % 4 == 0 for name, cost in report.after.items() if name != "head")
    report = efx.channelprune(made(ResNet), images(), amount=0.9, min_channels=7, **OPTIONS)
    assert min(cost.out_channels for name, cost in report.after.items() if name != "head") == 7


def test_groups_and_splits_are_left_whole() -> None:
    class Whole(Net):
        def __init__(self) -> None:
            super().__init__()
            self.groups = nn.Conv2d(16, 16, 3, padding=1, groups=4)
            self.second, self.tail = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 3)

        def middle(self, x: Tensor) -> Tensor:
            x = F.relu(self.groups(x))
            one, two = x.chunk(2, 1)
            return torch.cat([one, self.second(two)], 1) if depends_on_data(x) else x

    report = efx.channelprune(made(Whole), images(), amount=0.5, **OPTIONS)
    assert gone(report, "stem") == gone(report, "groups") == 0
    assert gone(report, "tail") == 4
    assert report.protected["stem"] == "groups has 4 groups, which torch_pruning leaves whole"

    class Split(Net):
        def __init__(self) -> None:
            super().__init__(tail=8)
            self.a = nn.Conv2d(16, 16, 3, padding=1)

        def middle(self, x: Tensor) -> Tensor:
            one, two = self.a(x).split(8, 1)
            return one * two.sigmoid() if depends_on_data(x) else x

    report = efx.channelprune(made(Split), images(), amount=0.5, **OPTIONS)
    assert gone(report, "stem") == 8
    assert gone(report, "a") == 0
    assert report.protected["a"] == "a split or slice behind counts on their number"


def test_layers_that_autograd_does_not_reach_stay() -> None:
    report = efx.channelprune(made(Frozen), images(), amount=0.5, **OPTIONS)
    assert report.plan["layers"] == {}
    assert report.protected["a"] == report.protected["b"] == "autograd does not reach it on example_inputs"
    model = made(Branches)
    before = state_of(model)
    with pytest.raises(ValueError, match="the pruned model does not run"):
        efx.channelprune(model, images().abs(), amount=0.5, **OPTIONS)  # the proof's random input is dark
    check_same_state(model, before)


def test_inputs_of_all_kinds() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.table = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Embedding(4, 8)

        def forward(self, pair: dict[str, Tensor], scale: float) -> Tensor:
            pair["image"] += 1  # an input that is written into
            x = F.relu(self.a(pair["image"])) * scale
            x = self.b(x) if depends_on_data(x) else x
            return x.mean((2, 3)) + self.table(pair["label"])

    inputs = {"image": images(), "label": torch.tensor([1, 3])}, 2.0
    expected = inputs[0]["image"].clone()
    report = efx.channelprune(made(Two), copy.deepcopy(inputs), amount=0.5, **OPTIONS)
    assert gone(report, "a") == 4
    assert report.protected["b"] in ("output of the model", "table (Embedding) computes with several channels at once")
    assert torch.equal(inputs[0]["image"], expected)


def test_channel_of_untied_scores() -> None:
    """Nothing is known of ties when filters are chosen: each layer's rows for themselves."""
    for scope in ("global", "layer"):
        options = OPTIONS | {"scope": scope, "granularity": "channel"}
        report = efx.channelprune(made(ResNet), images(), amount=0.7, structured=False, **options | {"backend": "auto"})
        assert report.plan["layers"] == {}
        report = efx.channelprune(made(ResNet), images(), amount=0.7, **options)
        assert report.pruned_filters > 0.65


def test_auto_takes_it_where_fx_cannot() -> None:
    report = efx.channelprune(made(ResNet), images(), amount=0.7, **OPTIONS | {"backend": "auto"})
    assert report.plan == efx.channelprune(made(ResNet), images(), amount=0.7, **OPTIONS).plan


def test_bad_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="verify must be True with backend torch_pruning"):
        efx.channelprune(made(ResNet), images(), amount=0.7, verify=False, **OPTIONS)

    class Detached(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="cannot follow this model: autograd reaches none of its outputs"):
        efx.channelprune(made(Detached), images(), amount=0.7, **OPTIONS)

    import torch_pruning

    def fail(*args: Any, **options: Any) -> None:
        raise KeyError("first line\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(torch_pruning.DependencyGraph, "build_dependency", fail)
        with pytest.raises(ValueError, match="backend torch_pruning cannot follow this model: 'first line") as caught:
            efx.channelprune(made(ResNet), images(), amount=0.7, **OPTIONS)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError) as caught:
        efx.channelprune(made(ResNet), images(), amount=0.7, **OPTIONS)
    assert str(caught.value) == 'backend torch_pruning needs torch-pruning: pip install "explainfix_ext[prune]"'
    with pytest.raises(ValueError, match="cannot be traced by torch.fx"):
        efx.channelprune(made(Untraceable), images(), amount=0.7, **OPTIONS | {"backend": "auto"})
