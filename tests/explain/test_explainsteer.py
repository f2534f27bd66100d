"""ExplainSteer, against its formulas written out over composed weights and plain autograd."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.explained import Batch, Shapes, batches, convolutions, make, singles, weight_gradients
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.filters.bank import FilterBank

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")
Spectrum = tuple[list[float], list[float], list[float]]
KINDS = ["learned", "frozen", "dct2", "ghaar4_s1", "ghaar2_ms", "ghaar", "compressed", "mixed", "hadamard"]


def made(kind: str) -> nn.Module:
    return make(kind, Shapes, seed=1, exclude="row" if kind == "ghaar4_s1" else None)


def filters_of(conv: Any) -> Tensor:
    """Hadamard filters as their basis has them: float32 columns and rows are 1e-8 beside it."""
    fast = isinstance(conv, efx.FixedConv2d) and conv.bank.hadamard is not None
    return conv.bank.with_coefficients().weight(torch.float64) if fast else conv.weight.detach()


def spectrum(weight: Tensor, w: Tensor) -> Spectrum:
    """e_d by frequency, e_1 and e_0 of weight (O, I, kh, kw) and w (O, I), written out with loops and cosines."""
    kh, kw = weight.shape[2:]

    def cosine(u: int, size: int) -> Tensor:
        scale = math.sqrt((1 if u == 0 else 2) / size)
        return torch.tensor(
            [scale * math.cos(math.pi / size * (n + 0.5) * u) for n in range(size)], dtype=torch.float64
        )

    ed = {}
    e1: list[float] = [0.0] * (kh + kw)
    for u, v in itertools.product(range(kh), range(kw)):
        function = torch.outer(cosine(u, kh), cosine(v, kw))
        ed[u, v] = float((w * (weight.double() * function).sum((2, 3)).abs()).sum())
        e1[u] += math.sqrt(ed[u, v])
        e1[kh + v] += math.sqrt(ed[u, v])
    order = sorted(ed, key=lambda uv: (uv[0] + uv[1], -abs(uv[0] - uv[1]), uv))
    e0 = [a + b for a, b in zip(e1[:kh], e1[kh:], strict=True)] if kh == kw else []
    return [ed[uv] for uv in order], e1, e0


def check(spectra: efx.Spectra, expected: dict[str, Spectrum]) -> None:
    assert list(spectra.ed) == list(expected)
    for name, (ed, e1, e0) in expected.items():
        assert spectra.ed[name].dtype == torch.float64
        assert relative_error(spectra.ed[name], torch.tensor(ed, dtype=torch.float64)) < 1e-12
        assert (
            relative_error(spectra.e1[name], torch.tensor(e1, dtype=torch.float64)) < 1e-7
        )  # roots of what is zero but for rounding
        assert (name in spectra.e0) == bool(e0)
        if e0:
            assert relative_error(spectra.e0[name], torch.tensor(e0, dtype=torch.float64)) < 1e-7


def gradient_sizes(model: nn.Module, data: list[Batch]) -> dict[str, list[Tensor]]:
    """Layer -> sum_hw |dc/dW| of each batch."""
    return {name: [g.abs().sum((-2, -1)) for g in found] for name, found in weight_gradients(model, data).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_spectra_without_data_are_means_over_filters(kind: str) -> None:
    model = made(kind)
    ones = {
        name: torch.ones(m.weight.shape[:2], dtype=torch.float64) / m.weight[:, :, 0, 0].numel()
        for name, m in convolutions(model).items()
    }
    check(efx.explainsteer(model), {n: spectrum(filters_of(m), ones[n]) for n, m in convolutions(model).items()})


@pytest.mark.parametrize("kind", KINDS)
def test_spectra_with_data_weigh_filters_by_their_mean_gradient(kind: str) -> None:
    model, data = made(kind), batches(3, 2)
    w = {name: torch.stack(found).mean(0) for name, found in gradient_sizes(model, singles(data)).items()}
    check(efx.explainsteer(model, data), {n: spectrum(filters_of(m), w[n]) for n, m in convolutions(model).items()})


@pytest.mark.parametrize("kind", ["learned", "dct2", "ghaar"])
def test_the_papers_spectra_take_roots_of_each_batch_and_add(kind: str) -> None:
    model, data = made(kind), batches(3, 2, 4)
    expected = {}
    for name, found in gradient_sizes(model, data).items():
        of_batches = [spectrum(convolutions(model)[name].weight.detach(), w) for w in found]
        expected[name] = tuple(
            [sum(values) for values in zip(*parts, strict=True)] for parts in zip(*of_batches, strict=True)
        )
    paper = efx.explainsteer(model, data, compat="paper")
    check(paper, expected)
    assert paper.compat == "paper"
    roots = efx.explainsteer(model, data).e1["square"]
    assert relative_error(paper.e1["square"], roots) > 0.1
    first = efx.explainsteer(model, data, compat="paper", num_batches=1)
    assert relative_error(first.ed["square"], efx.explainsteer(model, data[:1], compat="paper").ed["square"]) == 0
    without = [efx.explainsteer(model, compat=compat).e1["square"] for compat in (None, "paper")]
    assert torch.equal(*without)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (7, 1), (2, 4)])
def test_one_function_has_all_the_energy(kernel: tuple[int, int]) -> None:
    basis, order = efx.dct_basis(kernel), efx.frequency_order(kernel).tolist()
    for l in range(len(basis)):  # noqa: E741
        index = torch.full((4, 3), l, dtype=torch.uint8)
        fixed = efx.FixedConv2d(3, 4, kernel, bank=FilterBank(basis, index=index, scale=-2.0))
        spectra, place = efx.explainsteer(fixed), order.index(l)
        assert spectra.ed[""].nonzero().flatten().tolist() == [place]
        assert float(spectra.ed[""][place]) == pytest.approx(2)
        root = torch.zeros(sum(kernel)).double()
        root[[l // kernel[1], kernel[0] + l % kernel[1]]] = math.sqrt(2)
        assert relative_error(spectra.e1[""], root) < 1e-12
        assert list(spectra.e0) == ([""] if kernel == (3, 3) else [])
        plain = fixed.to_conv2d()
        assert float(efx.explainsteer(plain).ed[""][place]) == pytest.approx(2)


def test_filters_are_not_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("dct2", "ghaar4_s1", "ghaar", "psine", "unchanged")
    models = [nn.Sequential(nn.Conv2d(4, 8, 3)) for _ in kinds]
    for model, kind in zip(models, kinds, strict=True):
        efx.convert(model, kind)
    expected = [efx.explainsteer(model[0].to_conv2d()) for model in models]
    monkeypatch.setattr(FilterBank, "weight", None)
    monkeypatch.setattr("explainfix_ext.nn.fixed_conv.compose_weight", None)
    for model, spectra in zip(models, expected, strict=True):
        assert relative_error(efx.explainsteer(model).ed["0"], spectra.ed[""]) < 1e-6


def test_batches_stream_and_sum_to_one_batch() -> None:
    model, data = made("dct2"), batches(3, 2, 1)
    one = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    streamed, whole = efx.explainsteer(model, iter(data)), efx.explainsteer(model, one)
    taken = []
    efx.explainsteer(model, (taken.append(1) or batch for batch in data), compat="paper")
    assert len(taken) == 3
    for name in whole.ed:
        assert relative_error(streamed.ed[name], whole.ed[name]) < 1e-12
        assert relative_error(streamed.e1[name], whole.e1[name]) < 1e-12
    assert relative_error(efx.explainsteer(model, data, num_batches=1).ed["even"], whole.ed["even"]) > 0.01


@pytest.mark.parametrize("kind", ["learned", "frozen", "dct2", "mixed"])
@pytest.mark.parametrize("compat", [None, "paper"])
def test_the_model_comes_back_as_it_was(kind: str, compat: str | None) -> None:
    model = made(kind).train()
    model.norm.eval()
    model.square.bias.requires_grad_(False)
    model.mix.weight.grad = torch.ones_like(model.mix.weight)
    calls: list[int] = []
    model.even.register_forward_hook(lambda *_: calls.append(1))

    def everything() -> list[Any]:
        tensors = {key: value.clone() for key, value in model.state_dict().items()}
        facts = [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()]
        modes = [(m.training, dict(m._forward_hooks), dict(m._backward_hooks)) for m in model.modules()]
        return [tensors, facts, modes]

    def fails(output: Tensor, y: Tensor) -> Tensor:
        raise KeyError("cost")

    random = torch.get_rng_state()
    tensors, *rest = everything()
    with pytest.raises(KeyError):
        efx.explainsteer(model, batches(2), fails, compat=compat)
    efx.explainsteer(model, batches(2, 1), compat=compat)
    efx.explainsteer(model, compat=compat)
    after, *rest_after = everything()
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[key], value) for key, value in tensors.items())
    assert rest_after == rest
    assert bool((model.mix.weight.grad == 1).all())
    assert torch.equal(torch.get_rng_state(), random)
    assert len(calls) == 3


def test_a_pointwise_layer_shows_its_fixed_filters() -> None:
    conv = efx.FixedConv2d(4, 8, 3, seed=0, pointwise=True)
    assert torch.equal(efx.explainsteer(conv).ed[""], efx.explainsteer(efx.FixedConv2d(4, 8, 3, bank=conv.bank)).ed[""])


def test_a_costs_own_gradient_counts() -> None:
    model, data = made("learned"), batches(2)
    own = efx.explainsteer(model, data, lambda output, y: 3 * output.gather(1, y[:, None]).sum())
    assert relative_error(own.ed["square"], 3 * efx.explainsteer(model, data).ed["square"]) < 1e-12
    assert own.saliency


@pytest.mark.parametrize("compat", [None, "paper"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": []}, "data is empty"),
        ({"data": [torch.zeros(1, 3, 12, 12)]}, r"data must give pairs of tensors \(x, y\), got Tensor"),
        ({"num_batches": 0}, "num_batches must be at least 1, got 0"),
        ({"data": None, "num_batches": 1}, "data must be given with cost or num_batches, got None"),
        ({"data": None, "cost": F.cross_entropy}, "data must be given with cost or num_batches, got None"),
        ({"cost": lambda output, y: output}, r"cost must give a scalar that depends on .*, got \[3, 4\]"),
        ({"cost": lambda output, y: output.sum() * torch.nan}, "saliency of square is not finite"),
        ({"cost": lambda output, y: output.sum() * 0}, "saliency is zero everywhere"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str, compat: str | None) -> None:
    with pytest.raises(ValueError, match=message):
        efx.explainsteer(made("learned"), **({"data": batches(3), "compat": compat} | arguments))


def test_bad_models() -> None:
    with pytest.raises(ValueError, match='compat must be None or "paper"'):
        efx.explainsteer(made("learned"), compat="torch")
    with pytest.raises(ValueError, match="no spatial convolution"):
        efx.explainsteer(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="1 has no numbers: it is on the meta device"):
        efx.explainsteer(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, device="meta")))
    model = made("learned")
    model.row.weight.data[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="filters of row must be finite"):
        efx.explainsteer(model)
