"""Saliency, against plain autograd in float64."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.explained import Batch, Geometry, batches, convolutions, make, singles, weight_gradients
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.explain.saliency import default_cost

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")


def made(kind: str) -> nn.Module:
    return make(kind, Geometry)


def expected(model: nn.Module, data: list[Batch]) -> dict[str, list[Tensor]]:
    """Layer -> w * dc/dw of each batch."""
    weights = {name: m.weight.detach() for name, m in convolutions(model).items()}
    return {name: [weights[name] * g for g in found] for name, found in weight_gradients(model, data).items()}


@pytest.mark.parametrize("kind", ["learned", "fixed", "frozen", "coefficients", "hadamard"])
def test_saliency_is_the_mean_over_samples(kind: str) -> None:
    model, data = made(kind).train(), batches(3, 2)
    model.norm.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    scores = efx.saliency(model, data)
    for name, products in expected(model, singles(data)).items():
        assert relative_error(scores[name], torch.stack(products).abs().sum((-2, -1)).mean(0)) < 1e-10
        assert scores[name].dtype == torch.float64
    assert model.training
    assert not model.norm.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_the_papers_saliency_takes_batches_whole(kind: str) -> None:
    model, data = made(kind), batches(5, 4)
    scores = efx.saliency(model, data, compat="paper")
    for name, products in expected(model, data).items():
        assert relative_error(scores[name], sum(p.abs().sum((-2, -1)) for p in products)) < 1e-10
    first = efx.saliency(model, data, compat="paper", num_batches=1)
    assert relative_error(first["a"], expected(model, data[:1])["a"][0].abs().sum((-2, -1))) < 1e-10


def test_saliency_before_a_learned_1x1() -> None:
    """dc/dW of the fixed filters inside, by autograd through a layer that a hook computes from two convolutions."""
    model, (batch, *_) = made("pointwise"), batches(1)
    scores = efx.saliency(model, [batch])["a"]
    bank, (x, y) = model.a.bank, batch
    weight = bank.weight(torch.float64).requires_grad_()
    conv = model.a

    def forward(module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        inner = F.conv2d(args[0], weight, None, conv.stride, conv.padding)
        return F.conv2d(inner, conv.pointwise, conv.bias)

    handle = conv.register_forward_hook(forward)
    gradient = torch.autograd.grad(default_cost(model.eval()(x), y), weight)[0]
    handle.remove()
    assert relative_error(scores, (weight * gradient).abs().sum((-2, -1))) < 1e-10


@pytest.mark.parametrize("kind", ["learned", "fixed"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (4, 1, 1), (3, 2, 2), (2, 5, 1)])
def test_saliency_follows_tensorflows_padding(kind: str, kernel: int, stride: int, dilation: int) -> None:
    timm = pytest.importorskip("timm", reason="timm (extra `models`) is not installed")
    conv = timm.layers.Conv2dSame(3, 4, kernel, stride=stride, dilation=dilation)
    model, data = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double(), batches(1, 1)
    if kind == "fixed":
        efx.convert(model, "dct2")
    want = torch.stack(expected(model, data)["0"]).abs().sum((-2, -1)).mean(0)
    assert relative_error(efx.saliency(model, data)["0"], want) < 1e-10


def test_saliency_through_memory_savers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    efx.convert(model, "dct2")
    scores = efx.saliency(model, batches(1, 1))["0"]
    want = torch.stack(expected(model, batches(1, 1))["0"]).abs().sum((-2, -1)).mean(0)
    assert relative_error(scores, want) < 1e-10
    efx.save_memory(model, "recompute")
    assert relative_error(efx.saliency(model, batches(1, 1))["0"], scores) < 1e-10


def test_cost_and_targets() -> None:
    model, data = made("learned"), batches(2)
    own = efx.saliency(model, data, lambda output, y: F.cross_entropy(output, y, reduction="sum"))
    assert relative_error(own["a"], efx.saliency(model, data)["a"]) > 0.01
    one_hot = [(x, F.one_hot(y, 4).double()) for x, y in data]
    assert relative_error(efx.saliency(model, one_hot)["a"], efx.saliency(model, data)["a"]) < 1e-12
    maps, classes = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    assert default_cost({"out": maps}, classes).shape == ()
    assert default_cost((maps, None), classes) == maps.gather(1, classes[:, None]).sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": []}, "data is empty"),
        ({"data": [torch.zeros(1, 3, 12, 12)]}, r"data must give pairs of tensors \(x, y\), got Tensor"),
        ({"num_batches": 0}, "num_batches must be at least 1, got 0"),
        ({"compat": "torch"}, 'compat must be None or "paper"'),
        ({"cost": lambda output, y: output}, r"cost must give a scalar that depends on .*, got \[3, 4\]"),
        ({"cost": lambda output, y: output.sum() * torch.nan}, "saliency of a is not finite"),
        ({"cost": lambda output, y: output.sum() * 0}, "saliency is zero everywhere"),
        ({"data": [(torch.zeros(2, 3, 12, 12).double(), torch.zeros(2, 3))]}, r"y must be the model's output's shape"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    model = made("learned")
    with pytest.raises(ValueError, match=message):
        efx.saliency(model, **({"data": batches(3, 2)} | arguments))
    assert not any(m._forward_hooks for m in model.modules())
    assert model.training
    with pytest.raises(ValueError, match="no spatial convolution"):
        efx.saliency(nn.Linear(3, 3), batches(3, 2))


# Progress -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_batches", [None, 2])
def test_progress_is_shown_and_changes_nothing(capsys: pytest.CaptureFixture[str], num_batches: int | None) -> None:
    pytest.importorskip("rich", reason='needs the extra "demo"')
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten())
    data = [(torch.randn(2, 2, 3, 3), torch.tensor([0, 2])) for _ in range(3)]
    for explain, title in ((efx.saliency, "saliency"), (lambda *a, **k: efx.explainsteer(*a, **k).ed, "explainsteer")):
        quiet = explain(model, iter(data), num_batches=num_batches)
        assert capsys.readouterr().err == ""
        shown = explain(model, data, num_batches=num_batches, progress=True)
        assert torch.equal(shown["0"], quiet["0"])
        printed = capsys.readouterr()
        assert title in printed.err
        assert "100%" in printed.err
        assert printed.out == ""


def test_progress_without_rich_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r'progress=True needs rich: pip install "explainfix_ext\[demo\]"'):
        efx.saliency(nn.Conv2d(2, 3, 3), [], progress=True)
