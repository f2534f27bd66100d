"""The check that the pruned model computes what the masked one does: what it compares, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.nets import BY_CHANNEL, Net, check_same_state, images, made, state_of
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.prune import verify


def test_outputs_of_any_kind_stay_and_are_compared() -> None:
    @dataclasses.dataclass
    class Out:
        logits: Tensor

    class Wrapped(Net):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: Any) -> Any:
            x = self.tail(torch.relu(self.stem(x["image"] if self.kind == "dict" else x)))
            return {"dict": {"out": [x]}, "tuple": (x, None), "dataclass": Out(x)}[self.kind]

    for kind in ("dict", "tuple", "dataclass"):
        x: Any = {"image": images()} if kind == "dict" else images()
        report = efx.channelprune(made(lambda kind=kind: Wrapped(kind)), (x,), amount=0.5, **BY_CHANNEL)
        assert report.verify_error is not None
        assert isinstance(report.model, Wrapped)
        assert report.model.tail.out_channels == 8
        assert report.model.stem.out_channels < 16

    class Nothing(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).shape

    with pytest.raises(ValueError, match="holds no tensor that could be compared"):
        efx.channelprune(made(Nothing), images(), amount=0.5, **BY_CHANNEL)


def test_a_difference_is_refused_and_its_place_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut that takes a channel too many."""
    from explainfix_ext.prune.cut import sizes

    right = sizes.keep_enough

    def wrong(channels: Any, groups: Tensor, gone: Tensor, **enough: int) -> Tensor:
        gone = right(channels, groups, gone, **enough)
        stem = next(layer for layer in channels.layers() if layer.name == "stem")
        alive = stem.outputs[~gone[stem.outputs]][0]
        return gone | (groups == groups[alive])

    monkeypatch.setattr(sizes, "keep_enough", wrong)
    model = made(Net)
    before = state_of(model)
    with pytest.raises(ValueError, match="differs from the masked one by .*they part at tail; nothing was changed"):
        efx.channelprune(model, images(), amount=0.5, inplace=True, **(BY_CHANNEL | {"bn_bias": "keep"}))
    check_same_state(model, before)


def test_the_error_can_be_caught_by_its_name_of_before() -> None:
    assert verify.ProofError is verify.VerificationError
    assert issubclass(verify.VerificationError, ValueError)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv1d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.Linear(4, 6),
        efx.FixedConv2d(4, 6, 3, seed=0),
    ],
    ids=lambda layer: f"{type(layer).__name__} {getattr(layer, 'groups', '')}",
)
def test_ignored_inputs_have_no_effect_and_the_others_have_theirs(layer: nn.Module) -> None:
    x = torch.randn(2, *{nn.Linear: (4,), nn.Conv1d: (4, 5)}.get(type(layer), (4, 5, 5)))
    zero = x.clone()
    zero[:, [1, 2]] = 0
    with torch.no_grad():
        expected = layer(zero)
        verify.ignore_inputs_(layer, torch.tensor([False, True, True, False]))
        assert relative_error(layer(x), expected) < 1e-6
