"""ExplainSteer, against its formulas written out over composed weights and plain autograd; and its pictures."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.filters.bank import FilterBank

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")
Spectrum = tuple[list[float], list[float], list[float]]
KINDS = ["learned", "frozen", "dct2", "ghaar4_s1", "ghaar2_ms", "ghaar", "compressed", "mixed"]


class Shapes(nn.Module):
    """Kernels of every shape, grouped and depthwise; activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Conv2d(3, 8, 3, padding=1)
        self.row = nn.Conv2d(8, 8, (1, 5), padding="same")
        self.wide = nn.Conv2d(8, 6, (3, 4), groups=2, stride=2)
        self.deep = nn.Conv2d(6, 6, 5, groups=6, padding=2)
        self.mix, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.even = nn.Conv2d(6, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.row(F.relu_(self.square(x))))
        x = self.norm(self.mix(self.deep(F.relu_(self.wide(x)))))
        return self.even(F.relu_(x)).mean((2, 3))


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = Shapes()
    if kind == "compressed":
        efx.convert(model, "unchanged", energy=0.7)
    elif kind == "mixed":
        efx.convert(model, "ghaar4_ms", learn_coeff=True)
    elif kind not in ("learned", "frozen"):
        efx.convert(model, kind, seed=1, exclude="row" if kind == "ghaar4_s1" else None)
    if kind == "frozen":
        model.requires_grad_(False)
    return model.double()


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 12, 12, generator=g).double(), torch.randint(0, 4, (n,), generator=g)) for n in sizes]


def spectrum(weight: Tensor, w: Tensor) -> Spectrum:
    """e_d by frequency, e_1 and e_0 of weight (O, I, kh, kw) and w (O, I), as formulas.md says them."""
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


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}


def gradients(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
    """Layer -> sum_hw |dc/dW| of each batch, by autograd through composed weights."""
    plain = efx.revert(copy.deepcopy(model)).eval().requires_grad_(True)
    layers = convolutions(plain)
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    for x, y in data:
        cost = plain(x).gather(1, y[:, None]).sum()
        for name, g in zip(layers, torch.autograd.grad(cost, [m.weight for m in layers.values()]), strict=True):
            found[name].append(g.abs().sum((-2, -1)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_spectra_without_data_are_means_over_filters(kind: str) -> None:
    model = made(kind)
    ones = {
        name: torch.ones(m.weight.shape[:2], dtype=torch.float64) / m.weight[:, :, 0, 0].numel()
        for name, m in convolutions(model).items()
    }
    check(efx.explainsteer(model), {n: spectrum(m.weight.detach(), ones[n]) for n, m in convolutions(model).items()})


@pytest.mark.parametrize("kind", KINDS)
def test_spectra_with_data_weigh_filters_by_their_mean_gradient(kind: str) -> None:
    model, data = made(kind), batches(3, 2)
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in data for i in range(len(x))]
    w = {name: torch.stack(found).mean(0) for name, found in gradients(model, singles).items()}
    check(efx.explainsteer(model, data), {n: spectrum(m.weight.detach(), w[n]) for n, m in convolutions(model).items()})


@pytest.mark.parametrize("kind", ["learned", "dct2", "ghaar"])
def test_the_papers_spectra_take_roots_of_each_batch_and_add(kind: str) -> None:
    model, data = made(kind), batches(3, 2, 4)
    expected = {}
    for name, found in gradients(model, data).items():
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


def test_a_dct2_bank_is_flat_and_equals_its_counts() -> None:
    conv = efx.FixedConv2d(9, 16, 3, seed=0)  # each output takes each of 9 functions once
    spectra = efx.explainsteer(conv)
    assert relative_error(spectra.ed[""], torch.full((9,), conv.bank.scale / 9, dtype=torch.float64)) < 1e-12
    assert spectra.centre[""] == pytest.approx(0.5)
    assert spectra.low[""] == pytest.approx(3 / 9)
    assert spectra.flat == {"": pytest.approx(3 / 9)}
    sparse = efx.FixedConv2d(16, 32, 5, groups=2, seed=0, density=0.3, gain="kaiming")
    index = sparse.bank.index.flatten().long()
    counts = torch.bincount(index[index != 255], minlength=25)[efx.frequency_order((5, 5))]
    assert relative_error(efx.explainsteer(sparse).ed[""], sparse.bank.scale * counts.double() / index.numel()) < 1e-12


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
    monkeypatch.setattr("explainfix_ext.nn.fixed_conv2d.compose_weight", None)
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


def test_kinds_and_skipped_layers_are_named() -> None:
    assert [efx.explainsteer(made(k)).filters["square"] for k in ("learned", "frozen", "dct2", "mixed")] == [
        "learned",
        "frozen",
        "fixed",
        "mixed",
    ]
    model = nn.Sequential(
        nn.Conv2d(3, 4, (1, 3)), nn.ConvTranspose2d(4, 4, 2), nn.ConvTranspose2d(4, 4, 1), nn.Conv2d(4, 4, 3)
    )
    model[3].weight.data.zero_()
    spectra = efx.explainsteer(model)
    assert spectra.skipped == {"1": "ConvTranspose2d"}
    assert math.isnan(spectra.centre["3"])
    text = str(spectra)
    assert "0: no e_0, the kernel is not square" in text
    assert "1: skipped, ConvTranspose2d has no spectrum" in text
    assert "without saliency" in text
    assert text.splitlines()[1].split()[:3] == ["0", "learned", "1x3"]
    assert text.splitlines()[2].split()[-3:] == ["0", "-", "-"]


def test_a_pointwise_layer_shows_its_fixed_filters() -> None:
    conv = efx.FixedConv2d(4, 8, 3, seed=0, pointwise=True)
    assert torch.equal(efx.explainsteer(conv).ed[""], efx.explainsteer(efx.FixedConv2d(4, 8, 3, bank=conv.bank)).ed[""])


def test_a_costs_own_gradient_counts() -> None:
    model, data = made("learned"), batches(2)
    own = efx.explainsteer(model, data, lambda output, y: 3 * output.gather(1, y[:, None]).sum())
    assert relative_error(own.ed["square"], 3 * efx.explainsteer(model, data).ed["square"]) < 1e-12
    assert own.saliency


def test_json_keeps_every_number(tmp_path: Path) -> None:
    spectra = efx.explainsteer(made("dct2"), batches(2), compat="paper")
    spectra.save(tmp_path / "spectra.json")
    again = efx.Spectra.from_json((tmp_path / "spectra.json").read_text())
    for field in ("ed", "e1", "e0"):
        ours, theirs = getattr(spectra, field), getattr(again, field)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for field in ("kernels", "filters", "saliency", "compat", "skipped"):
        assert getattr(again, field) == getattr(spectra, field)
    for text in ("", "[]", '{"format": "something else"}'):
        with pytest.raises(ValueError, match=r"text must be what Spectra.to_json\(\) gives"):
            efx.Spectra.from_json(text)
    with pytest.raises(ValueError, match="version 1, got 2"):
        efx.Spectra.from_json(json.dumps(json.loads(spectra.to_json()) | {"version": 2}))


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


def shown(figure: Any) -> list[str]:
    """All words of a figure; drawing it finds what cannot be drawn."""
    from matplotlib.text import Text

    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_pictures_of_spectra_say_what_they_show() -> None:
    plots = pytest.importorskip("explainfix_ext.explain_plots", reason='needs the extra "demo"', exc_type=ImportError)
    before, after = efx.explainsteer(made("learned")), efx.explainsteer(made("dct2"), batches(2))
    figure = after.plot(before, names=("dct2", "learned"))
    words = shown(figure)
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 10  # five kernel sizes, two sides
    assert sorted(axes.images[0].get_array().shape for axes in maps[::2]) == [(1, 4), (1, 5), (1, 9), (1, 12), (1, 25)]
    assert figure.axes[0].get_title() == "dct2\n|DCT coefficient| x |gradient|, with saliency"
    assert figure.axes[1].get_title() == "learned\nmean |DCT coefficient|, without saliency"
    assert words.count("DCT-II functions of 3x4 kernels, low to high frequency") == 2
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in maps]
    assert names == [
        [name] for name in ("row", "row", "even", "even", "square", "square", "wide", "wide", "deep", "deep")
    ]
    assert "share of the layer's energy, over that of a flat spectrum" in words
    icons = maps[0].child_axes[0]
    assert [len(icons.images), icons.get_xlim()] == [5, (-0.5, 4.5)]
    bars = plots.plot_e0(before)
    assert [axes.get_xlabel() for axes in bars.axes[:3]] == [f"% of e_0, {k} kernels" for k in ("2x2", "3x3", "5x5")]
    widths = [sum(bar.get_width() for bar in axes.patches) for axes in bars.axes[:3]]
    assert widths == pytest.approx([100, 100, 100])
    assert "sum of e_0" in " ".join(shown(bars))
    with pytest.raises(ValueError, match="must have a layer with a square kernel"):
        plots.plot_e0(efx.explainsteer(nn.Conv2d(3, 4, (1, 3))))


def test_pictures_of_networks_that_differ_and_of_layers_without_energy() -> None:
    plots = pytest.importorskip("explainfix_ext.explain_plots", reason='needs the extra "demo"', exc_type=ImportError)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    model[0].weight.data.zero_()
    small, other = efx.explainsteer(model), efx.explainsteer(nn.Conv2d(3, 4, 3))
    figure = plots.plot_spectra(small, other)
    assert {"0", "1", "(model)"} <= set(shown(figure))
    assert [axes.get_ylim() for axes in figure.axes[:2]] == [(1.5, -0.5)] * 2
    assert bool(torch.from_numpy(figure.axes[0].images[0].get_array().mask).any(1).tolist() == [True, False])
    shown(plots.plot_e0(small, efx.explainsteer(made("learned"))))


def test_picture_of_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    plots = pytest.importorskip("explainfix_ext.explain_plots", reason='needs the extra "demo"', exc_type=ImportError)
    conv = efx.FixedConv2d(6, 4, (2, 3), seed=0, init="ghaar2_ms")
    weight = conv.weight.flatten(0, 1)
    monkeypatch.setattr(FilterBank, "weight", None)
    figure = plots.plot_filters(conv, count=8)
    tiles = torch.from_numpy(figure.axes[0].images[0].get_array().data)
    columns = (tiles.shape[1] + 1) // 4
    for k, place in enumerate([0, 3, 7, 10, 13, 16, 20, 23]):
        tile = tiles[k // columns * 3 :, k % columns * 4 :][:2, :3]
        assert relative_error(tile, weight[place]) < 1e-6
    assert "8 of 24 filters, 4x6x2x3, fixed: ghaar2_ms" in shown(figure)
    titles = [plots.plot_filters(m).axes[0].get_title() for m in (nn.Conv2d(3, 4, (1, 5)), made("frozen").deep)]
    assert titles == ["12 of 12 filters, 4x3x1x5, learned", "6 of 6 filters, 6x1x5x5, frozen"]
    with pytest.raises(TypeError, match="conv must be a Conv2d, got Linear"):
        plots.plot_filters(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        plots.plot_filters(conv, 0)


def test_picture_of_kept_filters() -> None:
    plots = pytest.importorskip("explainfix_ext.explain_plots", reason='needs the extra "demo"', exc_type=ImportError)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ConvTranspose2d(6, 4, 2)
    ).eval()
    model[0].weight.data[[2, 5]] *= 1e-3
    model[2].weight.data[0, :6] *= 1e-3
    x = torch.randn(1, 3, 12, 12)
    report = efx.channelprune(model, x, amount=12 / 72, criterion="l1")
    states = torch.zeros(8, 3), torch.zeros(6, 8)
    states[0][[2, 5]] = 2
    states[1][0, [0, 1, 3, 4]] = 1
    states[1][:, [2, 5]] = 2
    palette = torch.tensor(list(plots._STATES.values()))
    for figure in (plots.plot_kept(report), plots.plot_kept(report.plan, model)):
        words = shown(figure)
        assert {"kept", "set to zero", "removed with its channel", "8 outputs", "3 inputs"} <= set(words)
        maps = [torch.from_numpy(axes.images[0].get_array().data) for axes in figure.axes]
        assert [axes.get_title() for axes in figure.axes] == [
            f"{name}\n{(s == 0).double().mean():.1%} kept" for name, s in zip("02", states, strict=True)
        ]
        assert all(torch.equal(m, palette[s.long()]) for m, s in zip(maps, states, strict=True))
    with pytest.raises(ValueError, match="model must be given with a plan"):
        plots.plot_kept(report.plan)
    with pytest.raises(ValueError, match="plan is of another model"):
        plots.plot_kept(report.plan, nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_picture_of_pruned_groups_counts_as_the_pruned_model() -> None:
    plots = pytest.importorskip("explainfix_ext.explain_plots", reason='needs the extra "demo"', exc_type=ImportError)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1)).eval()
    report = efx.channelprune(model, torch.randn(1, 3, 12, 12), amount=0.5, criterion="l1", granularity="channel")
    figure = plots.plot_kept(report)
    for axes, name in zip(figure.axes, "02", strict=True):
        kept = (torch.from_numpy(axes.images[0].get_array().data) == torch.tensor(plots._STATES["kept"])).all(-1).sum()
        assert int(kept) == report.after[name].nonzero
