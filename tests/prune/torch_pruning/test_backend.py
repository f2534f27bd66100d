"""Models that torch.fx cannot trace: what goes, and that a wrong guess of Torch-Pruning changes nothing."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.data_dependent_nets import (
    BY_AUTOGRAD,
    Flipped,
    Mixed,
    Mobile,
    ResNet,
    Shuffled,
    Vgg,
    depends_on_data,
    gone,
    images,
)
from support.nets import HELD, KINDS, PRUNABLE, Hidden, Net, check_same_state, made, state_of
from torch import Tensor, nn

import explainfix_ext as efx

pytest.importorskip("torch_pruning")


NETS = {"resnet": ResNet, "vgg": Vgg, "mobile": Mobile, "mixed": Mixed}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETS)
def test_channels_go_and_nothing_else_changes(name: str, kind: str) -> None:
    model = made(NETS[name], kind)
    before = state_of(model)
    for bn_bias in ("keep", "drop"):
        for agree in ("all", "any"):
            report = efx.channelprune(model, images(), amount=0.7, **BY_AUTOGRAD | {"bn_bias": bn_bias, "agree": agree})
            assert report.model is not None
            fresh = efx.apply_plan(made(NETS[name], kind), report.plan)
            fresh.load_state_dict(report.model.state_dict())
            assert report.verify_error is None or report.verify_error < 1e-5
            if bn_bias == "drop" and kind != "pointwise":
                assert report.verify_error is not None
                assert report.parameters[1] < 0.8 * report.parameters[0]
    check_same_state(model, before)


def test_the_layers_that_lose_channels() -> None:
    resnet = efx.channelprune(made(ResNet), images(), amount=0.7, **BY_AUTOGRAD)
    assert gone(resnet, "blocks.0.conv1") == 11
    assert ["stem", "blocks.0.conv2"] in resnet.ties
    assert gone(resnet, "stem") == gone(resnet, "blocks.0.conv2") > 0
    assert resnet.protected == {"head": "output of the model"}

    vgg = efx.channelprune(made(Vgg), images(), amount=0.5, **BY_AUTOGRAD)
    assert gone(vgg, "b") == 6
    assert vgg.after["fc"].in_channels == 6 * 4 * 4

    mobile = efx.channelprune(made(Mobile), images(), amount=0.75, **BY_AUTOGRAD)
    for name in ("expand", "depthwise", "excite"):
        assert gone(mobile, name) == 24
    assert mobile.after["project"].in_channels == 8

    mixed = efx.channelprune(made(Mixed), images(), amount=0.5, **BY_AUTOGRAD)
    assert gone(mixed, "a") == 6
    assert len(mixed.plan["tensors"]["scale"]["kept"]) == 20 - 6 - 4
    assert {"act", "norm"} <= mixed.plan["per_channel"].keys()
    assert mixed.after["c"].in_channels == 11  # rows of the ConvTranspose are not zero
    assert "head" in mixed.protected
    assert mixed.protected["c"] == "output of the model"  # the mean of all its channels is one


def test_frozen_model_loses_as_much() -> None:
    """Torch-Pruning alone sees nothing of a model without gradients, and does nothing."""
    learned, frozen = (made(ResNet).requires_grad_(learns) for learns in (True, False))
    reports = [efx.channelprune(model, images(), amount=0.7, **BY_AUTOGRAD) for model in (learned, frozen)]
    assert reports[0].plan == reports[1].plan
    assert reports[1].parameters[1] < 0.5 * reports[1].parameters[0]
    assert reports[1].model is not None
    assert not any(p.requires_grad for p in reports[1].model.parameters())
    with torch.no_grad():
        assert efx.channelprune(frozen, images(), amount=0.7, **BY_AUTOGRAD).plan == reports[0].plan


@pytest.mark.parametrize("name", ["plain", "gate", "transposed", "flatten_linear"])
def test_same_cut_as_fx(name: str) -> None:
    """Of a model that both can follow, with the same filters zero."""
    model = made(PRUNABLE[name])
    scores = {n: torch.rand(m.weight.shape[:2]) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for score in scores.values():
        score[::2] += 100
    options = BY_AUTOGRAD | {"criterion": scores, "granularity": "filter", "amount": 0.5}
    plans = [efx.channelprune(model, images(size=8), **options | {"backend": b}).plan for b in ("fx", "torch_pruning")]
    assert plans[0]["layers"]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("net", [Flipped, Shuffled])
def test_what_torch_pruning_gets_wrong_is_refused(net: type[nn.Module]) -> None:
    model = made(net)
    before = state_of(model)
    for inplace in (False, True):
        with pytest.raises(ValueError, match="differs from the masked one|does not run"):
            efx.channelprune(model, images(), amount=0.5, inplace=inplace, **BY_AUTOGRAD)
    check_same_state(model, before)


@pytest.mark.parametrize("name", [*PRUNABLE, *HELD])
def test_verified_or_refused(name: str) -> None:
    """Whatever a network does with its channels: the model is right, or it is as before."""
    found: Any = PRUNABLE.get(name) or HELD[name]
    model = made(found[0] if name in HELD else found)
    before = state_of(model)
    for options in ({"bn_bias": "keep"}, {"agree": "all"}, {"agree": "any"}):
        try:
            report = efx.channelprune(model, images(size=8), amount=0.6, **BY_AUTOGRAD | options)
        except ValueError:
            check_same_state(model, before)
        else:
            assert report.verify_error is None or report.verify_error < 1e-5


def test_round_to_and_min_channels() -> None:
    report = efx.channelprune(made(ResNet), images(), amount=0.7, round_to=4, **BY_AUTOGRAD)
    assert report.after["blocks.0.conv1"].out_channels == 8  # 5 are left
    assert all(cost.out_channels % 4 == 0 for name, cost in report.after.items() if name != "head")
    report = efx.channelprune(made(ResNet), images(), amount=0.9, min_channels=7, **BY_AUTOGRAD)
    assert min(cost.out_channels for name, cost in report.after.items() if name != "head") == 7


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
    report = efx.channelprune(made(Two), copy.deepcopy(inputs), amount=0.5, **BY_AUTOGRAD)
    assert gone(report, "a") == 4
    assert report.protected["b"] in ("output of the model", "table (Embedding) computes with several channels at once")
    assert torch.equal(inputs[0]["image"], expected)


def test_channel_of_untied_scores() -> None:
    """Nothing is known of ties when filters are chosen: each layer's rows for themselves."""
    for scope in ("global", "layer"):
        options = BY_AUTOGRAD | {"scope": scope, "granularity": "channel"}
        report = efx.channelprune(made(ResNet), images(), amount=0.7, structured=False, **options | {"backend": "auto"})
        assert report.plan["layers"] == {}
        report = efx.channelprune(made(ResNet), images(), amount=0.7, **options)
        assert report.pruned_filters > 0.65


def test_auto_takes_it_where_nothing_can_be_recorded() -> None:
    report = efx.channelprune(made(Hidden), images(), amount=0.7, **BY_AUTOGRAD | {"backend": "auto"})
    assert report.plan["layers"]
    assert report.plan == efx.channelprune(made(Hidden), images(), amount=0.7, **BY_AUTOGRAD).plan


def test_bad_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="verify must be True with backend torch_pruning"):
        efx.channelprune(made(ResNet), images(), amount=0.7, verify=False, **BY_AUTOGRAD)

    class Detached(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="cannot follow this model: autograd reaches none of its outputs"):
        efx.channelprune(made(Detached), images(), amount=0.7, **BY_AUTOGRAD)

    import torch_pruning

    def fail(*args: Any, **options: Any) -> None:
        raise KeyError("first line\nsecond line")

    with monkeypatch.context() as patch:
        patch.setattr(torch_pruning.DependencyGraph, "build_dependency", fail)
        with pytest.raises(ValueError, match="backend torch_pruning cannot follow this model: 'first line") as caught:
            efx.channelprune(made(ResNet), images(), amount=0.7, **BY_AUTOGRAD)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError) as caught:
        efx.channelprune(made(ResNet), images(), amount=0.7, **BY_AUTOGRAD)
    assert str(caught.value) == 'backend torch_pruning needs torch-pruning: pip install "explainfix_ext[prune]"'
    with pytest.raises(ValueError, match="cannot be traced by torch.fx"):
        efx.channelprune(made(Hidden), images(), amount=0.7, **BY_AUTOGRAD | {"backend": "auto"})
