"""The checks of a pruned model see behind gates near zero: wrong cuts are refused, and right ones are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import conv, images, made
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.prune import backends
from explainfix_ext.prune.cut import sizes
from explainfix_ext.prune.gates import open_gates_


class Gated(nn.Module):
    """x + gate(c(b(x))), with a gate that is almost closed."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self.gate = gate
        self.a, self.b, self.c, self.head = conv(3, 16), conv(16, 16), conv(16, 16), conv(16, 4, 1)
        self.number, self.scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.full((16, 1, 1), 1e-6))
        self.norm, self.excite, self.small = nn.GroupNorm(4, 16), conv(16, 16, 1), conv(16, 16, 1)
        self.register_buffer("held", torch.full((16, 1, 1), 1e-7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.c(F.relu(self.b(x)))
        if self.gate == "excite":
            return self.head(x + y * self.excite(y.mean((2, 3), keepdim=True)).sigmoid())
        module = getattr(self, self.gate)
        return self.head(x + (module(y) if isinstance(module, nn.Module) else module * y))


def gated(gate: str) -> Any:
    model = made(lambda: Gated(gate))
    with torch.no_grad():
        model.norm.weight.zero_()
        model.excite.bias.fill_(-30)
        model.small.weight.mul_(1e-7)
        model.small.bias.zero_()
        model.b.bias[:6] = -1.0
    return model


def scores_of(model: nn.Module) -> dict[str, Tensor]:
    scores = {name: torch.ones(16, 3 if name == "a" else 16) for name in ("a", "b", "c")}
    scores["b"][:6] = 0
    return scores


GATES = ["number", "scale", "norm", "excite", "small", "held"]
MODES = ["keep", "drop", "fold"]
AMOUNT = 6 * 16 / (16 * 3 + 2 * 16 * 16)


def gates_and(modes: list[str]) -> Any:
    """Parametrises a test by all pairs of gate and bn_bias, of which one for each mode is quick."""
    pairs = [(gate, mode) for gate in GATES for mode in modes]
    quick = {*zip(GATES, modes, strict=False)}
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        ("gate", "bn_bias"), [pytest.param(*pair, marks=() if pair in quick else slow) for pair in pairs]
    )


@gates_and(MODES)
def test_right_cuts_behind_gates(gate: str, bn_bias: str) -> None:
    model = gated(gate)
    report = efx.channelprune(model, images(), amount=AMOUNT, criterion=scores_of(model), bn_bias=bn_bias)
    assert report.plan["layers"]["b"]["outputs"] == [*range(6, 16)]


@gates_and(["keep", "fold"])
def test_a_channel_too_many_behind_a_gate(gate: str, bn_bias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sizes.keep_enough

    def wrong(channels: Any, groups: Tensor, gone: Tensor, **enough: int) -> Tensor:
        gone = right(channels, groups, gone, **enough)
        layer = next(layer for layer in channels.layers() if layer.name == "b")
        return gone | (groups == groups[layer.outputs[-1]])

    monkeypatch.setattr(sizes, "keep_enough", wrong)
    model = gated(gate)
    with pytest.raises(ValueError, match="c misses a channel that it read; nothing was changed"):
        efx.channelprune(model, images(), amount=AMOUNT, criterion=scores_of(model), bn_bias=bn_bias)


@pytest.mark.parametrize(
    "gate", [pytest.param(gate, marks=pytest.mark.slow if gate in GATES[:3] else ()) for gate in GATES]
)
def test_other_channels_behind_a_gate(gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = backends.make_pruning_plan

    def wrong(*args: Any) -> Any:
        plan = right(*args)
        plan["layers"]["c"]["inputs"] = [*range(10)]
        return plan

    monkeypatch.setattr(backends, "make_pruning_plan", wrong)
    model = gated(gate)
    with pytest.raises(
        ValueError, match="behind scales near zero, which the check replaces, .*they part at c; nothing"
    ):
        efx.channelprune(model, images(), amount=AMOUNT, criterion=scores_of(model), bn_bias="drop")


def test_an_unread_channel_that_stays_may_miss_what_it_read() -> None:
    model = made(lambda: nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 4), nn.ReLU()))
    scores = {"0": torch.ones(16, 3), "2": torch.ones(16, 16), "4": torch.ones(4, 16)}
    scores["4"][:, :3] = 0  # outputs 0 to 2 of the second layer are unread; one of them stays, so that 14 are even ...
    scores["2"][3:, 1] = scores["2"][3:, 5] = 0  # ... and it alone reads two channels, which go
    zero, filters = (sum(int(f(s)) for s in scores.values()) for f in (lambda s: (s == 0).sum(), Tensor.numel))
    report = efx.channelprune(model, images(), amount=zero / filters, criterion=scores, round_to=2)
    assert [len(report.plan["layers"][name]["outputs"]) for name in ("0", "2")] == [14, 14]


def test_gates_that_are_open_stay() -> None:
    model = made(lambda: Gated("scale"))
    with torch.no_grad():
        model.scale.fill_(0.7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    open_gates_(model, 0)
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert "scale" not in changed
    assert {"number", "held"} <= changed
    assert not any(name.endswith("weight") for name in changed)
    assert 0.5 <= after["number"].item() <= 1.5
