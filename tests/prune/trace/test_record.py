"""Models that torch.fx cannot trace are recorded on the example, and pruned and verified like others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.data_dependent_nets import BY_AUTOGRAD, Mixed, Mobile, ResNet, Vgg, gone
from support.data_dependent_nets import images as larger_images
from support.nets import BY_CHANNEL, PRUNABLE, Net, check_same_state, conv, images, made, state_of
from torch import Tensor, fx, nn

import explainfix_ext as efx
from explainfix_ext.prune.trace.fx_graph import trace_graph
from explainfix_ext.prune.trace.fx_trace import ChannelTrace
from explainfix_ext.prune.trace.modes import tensors_of

OPTIONS = BY_CHANNEL | {"scope": "layer", "backend": "fx"}


class Branching(Net):
    """Net whose middle is any function, after a branch that torch.fx cannot trace."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.does, self.a, self.b, self.first = middle, conv(16, 16), conv(8, 8), 8
        self.depthwise, self.grouped = conv(16, 16, groups=16), conv(16, 16, groups=2)
        self.anchors = torch.ones(1, 1, 8, 8)  # neither a Parameter nor a buffer

    def middle(self, x: Tensor) -> Tensor:
        return self.does(self, x) if bool(x.isfinite().all()) else x


def shuffled(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def written(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 0] = 0.0  # of all channels alike
    return y + x


def iterated(m: Any, x: Tensor) -> Tensor:
    return torch.stack([image * 2 for image in x])


MIDDLES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "grouped": lambda m, x: m.grouped(F.relu(m.depthwise(x))),
    "in place": lambda m, x: F.relu_(m.a(x).add_(x)),
    "augmented": lambda m, x: 0.5 * x - x.mean((2, 3), keepdim=True) * m.anchors,
    "shuffle": shuffled,
    "iterated": iterated,
    "written": written,
    "chunks": lambda m, x: torch.cat([m.b(part) for part in x.chunk(2, 1)], 1),
    "attribute": lambda m, x: torch.cat([m.b(part) for part in x.split([m.first, m.first], 1)], 1),
    "transposed": lambda m, x: x.mT.contiguous().mT + x.flatten(2).unflatten(2, (8, 8)),
}


@pytest.mark.parametrize("kind", ["learned", "dct2"])
@pytest.mark.parametrize("name", MIDDLES)
def test_recorded_models_lose_channels(name: str, kind: str) -> None:
    model = made(lambda: Branching(MIDDLES[name]), kind)
    before = state_of(model)
    report = efx.channelprune(model, images(), amount=0.5, **OPTIONS)
    assert report.verify_error is not None
    assert "stem" not in report.protected
    assert report.plan["layers"]["tail"]["outputs"]
    assert report.plan["layers"]["tail"]["inputs"] or name == "grouped"
    assert type(report.model) is Branching
    check_same_state(model, before)
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl


@pytest.mark.parametrize("name", PRUNABLE)
def test_recorded_like_traced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cut follows from what was recorded and from what torch.fx traced."""
    model = made(PRUNABLE[name])
    traced = efx.channelprune(model, images(), amount=0.6, **OPTIONS)

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("not traced")

    monkeypatch.setattr(fx.Tracer, "trace", fail)
    recorded = efx.channelprune(model, images(), amount=0.6, **OPTIONS)
    assert recorded.plan == traced.plan
    assert recorded.protected.keys() == traced.protected.keys()


@pytest.mark.parametrize("net", [ResNet, Vgg, Mobile, Mixed])
def test_no_less_goes_than_by_autograd(net: type[nn.Module]) -> None:
    pytest.importorskip("torch_pruning")
    for amount in (0.5, 0.75):
        options = BY_AUTOGRAD | {"granularity": "filter"}
        by_autograd = efx.channelprune(made(net), larger_images(), amount=amount, **options)
        report = efx.channelprune(made(net), larger_images(), amount=amount, **options | {"backend": "auto"})
        assert report.parameters[1] <= by_autograd.parameters[1]
        assert all(gone(report, name) >= gone(by_autograd, name) for name in report.before)


def test_what_is_written_into_stays() -> None:
    def written_by_number(m: Any, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, : m.first] = m.b(x[:, : m.first])
        return y

    report = efx.channelprune(made(lambda: Branching(written_by_number)), images(), amount=0.5, **OPTIONS)
    assert "set_item" in report.protected["stem"]
    assert report.plan["layers"]["tail"]["outputs"]


class Nested(Branching):
    """Takes and gives nests of tensors, more in training."""

    def forward(self, pair: dict[str, Any]) -> Any:  # type: ignore[override]
        x = F.relu(self.bn(self.stem(pair["images"][0])))
        y = F.dropout(self.tail(self.middle(x)), 0.5, self.training).mean((2, 3))
        return {"logits": self.head(y), "more": [y]} if self.training else {"logits": self.head(y)}


def test_inputs_and_outputs_may_be_nests_and_more_in_training() -> None:
    model, pair = made(lambda: Nested(lambda m, x: m.a(x))), ({"images": [images()]},)
    report = efx.channelprune(model, pair, amount=0.5, **OPTIONS)
    assert report.plan["layers"]["stem"]["outputs"]
    assert report.protected["tail"] == "output of the model"
    got, expected = (tensors_of(m.train()(*pair)) for m in (report.model, model))  # type: ignore[union-attr]
    assert [t.shape for t in got] == [t.shape for t in expected]


def test_the_graph_of_a_recorded_run_computes_what_the_model_does() -> None:
    model = made(lambda: Branching(shuffled))
    graph = trace_graph(model, (images(),))
    assert not any(node.target == "isfinite" for node in graph.nodes)  # only the branch asks for it
    other = images(3)
    assert torch.equal(fx.Interpreter(model, graph=graph).run(other)[0], model(other))
    trace = ChannelTrace(model, (images(),))
    with torch.no_grad():
        trace.run(images())
    assert {layer.name for layer in trace.channels.layers()} == {"stem", "tail", "head"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilevit_xxs", "efficientvit_b0", "efficientvit_m0", "FPN", "PSPNet"])
def test_networks_of_timm_and_smp(name: str) -> None:
    torch.manual_seed(0)
    if name[0].isupper():
        smp = pytest.importorskip("segmentation_models_pytorch")
        model = getattr(smp, name)("resnet18", encoder_weights=None).eval()
    else:
        model = pytest.importorskip("timm").create_model(name).eval()
    report = efx.channelprune(model, torch.randn(2, 3, 64, 64), amount=0.5, **OPTIONS)
    assert report.verify_error is not None
    assert report.parameters[1] < 0.99 * report.parameters[0]
