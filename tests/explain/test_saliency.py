"""Saliency and the criteria, against plain autograd in float64."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.nets import Net, Residual
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.explain.saliency import default_cost
from explainfix_ext.prune.score.criteria import CRITERIA, Context, score
from explainfix_ext.prune.trace.fx_trace import ChannelTrace


class Geometry(nn.Module):
    """A layer of each kind that F.unfold must follow; activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, (3, 5), padding="same", groups=4, dilation=(2, 1))
        self.c = nn.Conv2d(8, 6, 4, padding=2, padding_mode="reflect", bias=False)
        self.mix, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.d = nn.Conv2d(6, 6, 3, padding=(0, 1), groups=6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.b(F.relu_(self.a(x))))
        x = F.relu(self.norm(self.mix(self.c(x))), inplace=True)
        return self.head(self.d(x).mean((2, 3)))


def made(kind: str, make: type[nn.Module] = Geometry) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    options: dict[str, Any] = {"coefficients": {"learn_coeff": True}, "pointwise": {"pointwise": True}}.get(kind, {})
    if kind != "learned":
        efx.convert(model, "dct2", **options)
    if kind == "frozen":
        model.requires_grad_(False)
    return model.double()


def batches(sizes: tuple[int, ...] = (3, 2)) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 12, 12, generator=g).double(), torch.randint(0, 4, (n,), generator=g)) for n in sizes]


def expected(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
    """Layer -> w * dc/dw of each batch, by autograd through composed weights."""
    pointwise = {n: m.pointwise for n, m in model.named_modules() if isinstance(m, efx.FixedConv2d)}
    assert not any(p is not None for p in pointwise.values())
    plain = efx.revert(copy.deepcopy(model), requires_grad=True).eval().requires_grad_(True)
    layers = {n: m for n, m in plain.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    for x, y in data:
        cost = plain(x).gather(1, y[:, None]).sum()
        gradients = torch.autograd.grad(cost, [m.weight for m in layers.values()])
        for (name, m), g in zip(layers.items(), gradients, strict=True):
            found[name].append((m.weight * g).detach())
    return found


@pytest.mark.filterwarnings("ignore:.*little is left to learn")
@pytest.mark.parametrize("kind", ["learned", "fixed", "frozen", "coefficients"])
def test_saliency_is_the_mean_over_samples(kind: str) -> None:
    model, data = made(kind).train(), batches()
    model.norm.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    scores = efx.saliency(model, data)
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in data for i in range(len(x))]
    for name, products in expected(model, singles).items():
        assert relative_error(scores[name], torch.stack(products).abs().sum((-2, -1)).mean(0)) < 1e-10
        assert scores[name].dtype == torch.float64
    assert model.training
    assert not model.norm.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.filterwarnings("ignore:.*little is left to learn")
@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_the_papers_saliency_takes_batches_whole(kind: str) -> None:
    model, data = made(kind), batches((5, 4))
    scores = efx.saliency(model, data, compat="paper")
    for name, products in expected(model, data).items():
        assert relative_error(scores[name], sum(p.abs().sum((-2, -1)) for p in products)) < 1e-10
    first = efx.saliency(model, data, compat="paper", num_batches=1)
    assert relative_error(first["a"], expected(model, data[:1])["a"][0].abs().sum((-2, -1))) < 1e-10


@pytest.mark.filterwarnings("ignore:.*little is left to learn")
def test_saliency_behind_a_learned_1x1() -> None:
    """dc/dW of the fixed filters inside: by finite differences of one filter's factor."""
    model, (batch, *_) = made("pointwise"), batches((1,))
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


def test_saliency_through_memory_savers_and_timms_same_padding() -> None:
    timm = pytest.importorskip("timm")
    model = nn.Sequential(timm.layers.Conv2dSame(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    efx.convert(model, "dct2")
    scores = efx.saliency(model, batches((1, 1)))["0"]
    assert (
        relative_error(scores, torch.stack(expected(model, batches((1, 1)))["0"]).abs().sum((-2, -1)).mean(0)) < 1e-10
    )
    efx.save_memory(model, "recompute")
    assert relative_error(efx.saliency(model, batches((1, 1)))["0"], scores) < 1e-10


def test_cost_and_targets() -> None:
    model, data = made("learned"), batches((2,))
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
        efx.saliency(model, **({"data": batches()} | arguments))
    assert not any(m._forward_hooks for m in model.modules())
    assert model.training
    with pytest.raises(ValueError, match="no spatial convolution"):
        efx.saliency(nn.Linear(3, 3), batches())


def context(model: nn.Module, data: Any = None) -> Context:
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}
    trace = ChannelTrace(model.eval())
    with torch.no_grad():
        trace.run(torch.zeros(1, 3, 12, 12).double())
    return Context(model, layers, trace.channels, data, None, None, 0)


@pytest.mark.filterwarnings("ignore:.*little is left to learn")
@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_criteria_of_weights_and_gradients(kind: str) -> None:
    model, data = made(kind).eval(), batches((1, 1, 1))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}
    for name, products in expected(model, data).items():
        weight = layers[name].weight.detach()
        assert relative_error(score("l1", context(model))[name], weight.abs().sum((-2, -1))) < 1e-12
        assert relative_error(score("l2", context(model))[name], weight.square().sum((-2, -1)).sqrt()) < 1e-12
        taylor = torch.stack([p.sum((-2, -1)).square() for p in products]).mean(0)
        assert relative_error(score("taylor", context(model, data))[name], taylor) < 1e-10


def test_bn_scale_is_the_norms_weight() -> None:
    model = made("learned", Net)
    nn.init.normal_(model.bn.weight)
    with pytest.raises(ValueError, match='"bn_scale" needs a BatchNorm behind every spatial layer: tail has none'):
        score("bn_scale", context(model))
    model.tail = nn.Sequential(model.tail, nn.BatchNorm2d(8)).double()
    scores = score("bn_scale", context(model))
    assert torch.equal(scores["stem"], model.bn.weight.detach().abs()[:, None].expand(16, 3))
    assert torch.equal(scores["tail.0"], torch.ones(8, 16).double())


def test_hrank_is_the_mean_rank_of_feature_maps() -> None:
    model, data = made("learned", Net), batches((2, 1))
    with torch.no_grad():
        model.stem.weight[3] = 0
        model.stem.bias[3] = 1  # constant maps: rank 1
    scores = score("hrank", context(model, data))["stem"]
    ranks = [torch.linalg.matrix_rank(model.stem(x)).double().sum(0) for x, _ in data]
    assert torch.equal(scores, (sum(ranks) / 3)[:, None].expand(16, 3))
    assert scores[3, 0] == 1


def test_nisp_spreads_importance_back() -> None:
    """Net, by hand: head -> mean -> tail -> stem."""
    model = made("learned", Net)
    importance = model.head.weight.detach().abs().sum(0)
    tail = model.tail.weight.detach().abs().sum((-2, -1))
    scores = score("nisp", context(model))
    share = tail * importance[:, None]
    assert relative_error(scores["tail"], share / share.mean()) < 1e-12
    stem = model.stem.weight.detach().abs().sum((-2, -1)) * (tail.T @ importance)[:, None]
    assert relative_error(scores["stem"], stem / stem.mean()) < 1e-12


def test_every_criterion_prunes_and_random_is_seeded() -> None:
    model, data = made("learned", Residual), batches((2,))
    for name in CRITERIA:
        if name == "bn_scale":
            continue
        report = efx.channelprune(model, data[0][0], amount=0.5, criterion=name, data=data, structured=name == "nisp")
        assert report.criterion == name
        assert 0.49 < report.pruned_filters < 0.6
    plans = [
        efx.channelprune(model, data[0][0], amount=0.5, criterion="random", structured=False, seed=seed).plan
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]


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
