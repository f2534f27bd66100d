"""The graph that torch.fx traces: it is the model on the example, in both modes, or is not used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import BY_CHANNEL, Net, images, made
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.prune.trace.modes import tensors_of


class Asked(Net):
    """Net that asks something before it goes on."""

    def __init__(self, asks: Callable[..., bool]) -> None:
        super().__init__()
        self.asks = asks

    def forward(self, x: Tensor, mask: Any = None, flag: bool = False, **more: Any) -> Tensor:  # type: ignore[override]
        x = self.bn(self.stem(x))
        x = x if mask is None else x * mask
        return self.head((self.tail(x) if self.asks(x, flag, more) else F.relu(self.tail(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "asks",
    [lambda x, f, m: isinstance(x, Tensor), lambda x, f, m: torch.jit.isinstance(x, Tensor)],
    ids=["isinstance", "jit.isinstance"],
)
def test_where_the_graph_is_not_the_model_a_run_is_recorded(asks: Callable[..., bool]) -> None:
    model = made(lambda: Asked(asks))
    report = efx.channelprune(model, images(), amount=0.5, **BY_CHANNEL | {"backend": "fx"})
    assert report.plan["layers"]["tail"]["outputs"]
    assert report.verify_error is not None


def test_another_graph_than_the_model_is_refused() -> None:
    net = made(lambda: Asked(lambda x, f, m: _coin()))
    with pytest.raises(ValueError, match="the graph that torch.fx traced is not the model: they part at") as caught:
        efx.channelprune(net, images(), amount=0.5, **BY_CHANNEL | {"backend": "fx"})
    assert "\n" not in str(caught.value)


_coins = [False]


def _coin() -> bool:
    _coins.append(not _coins[-1])
    return _coins[-1]


@pytest.mark.parametrize("extra", [(), (torch.ones(1, 1, 8, 8),), (None, True)], ids=["defaults", "mask", "flag"])
def test_what_is_no_tensor_is_read(extra: tuple[Any, ...]) -> None:
    model = made(lambda: Asked(lambda x, flag, more: flag or more.get("linear", False)))
    report = efx.channelprune(model, (images(), *extra), amount=0.5, **BY_CHANNEL | {"backend": "fx"})
    assert report.plan["layers"]["tail"]["outputs"]


@dataclass
class Out:
    logits: Tensor
    features: Any


class Both(Net):
    """Net that gives more in training: what `gives` makes of logits, maps and their means."""

    def __init__(self, gives: Callable[[Any, Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.gives, self.aux, self.drop = gives, nn.Conv2d(8, 2, 1), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.tail(F.relu(self.bn(self.stem(x)))))
        mean = self.drop(x.mean((2, 3)))
        y = self.head(mean)
        return self.gives(self, y, x, mean) if self.training else y


GIVES: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Any]] = {
    "tuple": lambda m, y, x, mean: (y, mean),
    "nested dict": lambda m, y, x, mean: {"out": y, "more": [(x,)]},
    "dataclass": lambda m, y, x, mean: Out(y, {"maps": x}),
    "other width": lambda m, y, x, mean: torch.cat([y, mean], 1),
    "dropout": lambda m, y, x, mean: (y, F.dropout(mean, 0.3)),
    "head": lambda m, y, x, mean: (y, m.aux(x)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("nested dict", "dropout", "head") else pytest.mark.slow) for n in GIVES]
)
def test_training_outputs_keep_shapes_and_values(name: str) -> None:
    model = made(lambda: Both(GIVES[name]))
    report = efx.channelprune(model, images(), amount=0.5, **BY_CHANNEL)
    masked = efx.channelprune(model, images(), amount=0.5, structured=False, **BY_CHANNEL).model
    assert report.model is not None
    assert masked is not None
    assert report.plan["layers"]["tail"]["outputs"] is None or name == "head"
    got, expected = (tensors_of(m.train()(images())) for m in (report.model, masked))
    assert [t.shape for t in got] == [t.shape for t in expected]
    if name == "head":
        assert isinstance(report.model, Both)
        assert report.model.aux.in_channels == report.model.tail.out_channels < 8


def test_outputs_of_training_that_cannot_be_traced_are_refused() -> None:
    def gives(m: Any, y: Tensor, x: Tensor, mean: Tensor) -> Any:
        return y, x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="in training mode the pruned model's output must be .2, 8, 8, 8., got .2, "):
        efx.channelprune(made(lambda: Both(gives)), images(), amount=0.5, **BY_CHANNEL)


def test_a_model_that_needs_targets_in_training_is_pruned() -> None:
    def gives(m: Any, y: Tensor, x: Tensor, mean: Tensor) -> Any:
        raise ValueError("targets should not be none in training mode")

    assert efx.channelprune(made(lambda: Both(gives)), images(), amount=0.5, **BY_CHANNEL).plan["layers"]
