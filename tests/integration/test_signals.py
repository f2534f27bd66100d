"""Networks for signals through the whole package: convert, explain, prune, save memory, and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.zoo import convert_quietly
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.prune.score.criteria import CRITERIA
from explainfix_ext.training.models import build_model

DEEP: Any = {"dtype": torch.float64}


def network(init: str | None = "dct2", **options: Any) -> nn.Module:
    """Three spatial layers with strides, groups and unequal padding, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv1d(2, 8, 8, padding="same", bias=False), nn.BatchNorm1d(8), nn.ReLU()),
        *(nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 12, 5, stride=2, padding=2, groups=2), nn.BatchNorm1d(12)),
        *(nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(12, 12, 1), nn.ReLU()),
        *(nn.Conv1d(12, 6, 3, dilation=2), nn.BatchNorm1d(6), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        nn.Linear(6, 3),
    )
    if init is not None:
        convert_quietly(model, init, seed=0, **options)
    return model.double()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 2, 40, **DEEP), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("name", ["fcn1d", "resnet1d", "inceptiontime"])
def test_presets_convert_and_revert(name: str) -> None:
    torch.manual_seed(0)
    model, x = build_model(f"{name}@0.125", 3, 4).eval(), torch.randn(2, 3, 50)
    count = sum(isinstance(m, nn.Conv1d) and m.kernel_size[0] > 1 for m in model.modules())
    report = convert_quietly(model, "dct2", seed=0)
    fixed = [m for m in model.modules() if isinstance(m, efx.FixedConv1d)]
    assert len(report.converted) == len(fixed) == count == {"fcn1d": 3, "resnet1d": 9, "inceptiontime": 18}[name]
    before = model(x)
    assert before.shape == (2, 4)
    assert relative_error(efx.plain(model)(x), before) < 1e-5
    assert relative_error(efx.revert(model)(x), before) < 1e-5
    assert not any(isinstance(m, efx.FixedConv1d) for m in model.modules())


def test_convert_says_what_it_takes() -> None:
    with pytest.raises(TypeError, match="use FixedConv1d.from_conv1d"):
        efx.convert(nn.Conv1d(2, 3, 3))
    with pytest.raises(TypeError, match="use conv.to_conv1d"):
        efx.revert(efx.FixedConv1d(2, 3, 3, seed=0))
    gate = nn.Sequential(nn.Conv1d(1, 1, 3), nn.Conv1d(1, 8, 3))  # the first is the gate of ECA: one filter
    report = convert_quietly(gate, "dct2", seed=0)
    assert [layer.name for layer in report.converted] == ["1"]


@pytest.mark.parametrize("options", [{}, {"pointwise": True}, {"learn_coeff": True}], ids=str)
def test_saliency_is_autograds(options: dict[str, Any]) -> None:
    model, (x, y) = network("ghaar4_s1", **options).eval(), batch()
    found = efx.saliency(model, [(x, y)])
    twin = copy.deepcopy(model)
    assert [*found] == ["0", "5", "11"]
    for name in found:
        conv = twin.get_submodule(name)
        weight = conv.weight.detach().requires_grad_()
        scores = torch.zeros(weight.shape[:2], **DEEP)
        for one, label in zip(x, y, strict=True):
            with_weight(twin, name, weight)(one[None])[0, label].backward()
            scores += (weight * weight.grad).abs().sum(2).detach() / len(x)
            weight.grad = None
        assert relative_error(found[name], scores) < 1e-10


def with_weight(model: nn.Module, name: str, weight: Tensor) -> Any:
    """The network, in which one fixed layer convolves with `weight`."""

    def run(x: Tensor) -> Tensor:
        for at, module in model.named_children():
            if at != name:
                x = module(x)
                continue
            conv: Any = module
            mix = conv.pointwise
            padding = conv.padding
            geometry = (conv.stride, padding, conv.dilation, conv.groups)
            x = F.conv1d(x, weight, conv.bias if mix is None else None, *geometry)
            x = x if mix is None else F.conv1d(x, mix, conv.bias)
        return x

    return run


def test_explainsteer_is_the_mean_dct_coefficient() -> None:
    for model in (network(None), network("dct2"), network("hadamard")):
        spectra = efx.explainsteer(model)
        for name, conv in ((n, model.get_submodule(n)) for n in ("0", "5", "11")):
            size = conv.kernel_size[0]
            expected = (conv.weight.detach() @ efx.dct_basis((1, size))[:, 0].T).abs().mean((0, 1))
            assert spectra.kernels[name] == (1, size)
            assert relative_error(spectra.ed[name], expected) < 1e-6
            assert torch.equal(spectra.e0[name], spectra.ed[name].sqrt())
    weighted = efx.explainsteer(network("dct2"), [batch()])
    assert all(bool(energy.any()) for energy in weighted.ed.values())


def test_steering_of_signals() -> None:
    pretrained, model = network(None), network(None)
    for method in ("guided", "svd"):
        steering = efx.fit_steering(pretrained, method)
        assert {name: layer.kernel_size for name, layer in steering.layers.items()} == {
            "0": (1, 8),
            "5": (1, 5),
            "11": (1, 3),
        }
        report = convert_quietly(copy.deepcopy(model), f"{method}_steer", seed=0, steering=steering)
        assert len(report.converted) == 3


@pytest.mark.parametrize("mode", ["spatial", "joint"])
def test_filters_from_data(mode: str) -> None:
    model, data = network(None), [batch()]
    banks = efx.fit_saab(model, data, mode)
    assert {name: bank.shape[2:] for name, bank in banks.items()} == {"0": (1, 8), "5": (1, 5), "11": (1, 3)}
    first = banks["0"].basis.flatten(1)  # the constant, and the principal axes of patches of the data
    assert relative_error(first @ first.T, torch.eye(len(first), dtype=first.dtype)) < 1e-6
    report = convert_quietly(model, lambda name, conv: banks[name])
    assert len(report.converted) == 3
    assert torch.isfinite(model(data[0][0])).all()


def test_fixed_1x1_mix_by_a_transform() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 3), nn.Conv1d(1, 8, 5), nn.Conv1d(8, 8, 1), nn.Conv1d(8, 2, 1))
    report = convert_quietly(model, seed=0, include_pointwise=True)
    assert {layer.name: layer.init for layer in report.converted} == {"1": "dct2", "2": "hadamard", "3": "hadamard"}


@pytest.mark.parametrize("init", [None, "dct2", "ghaar4_s1"])
def test_frequencies_of_signals_add_up(init: str | None) -> None:
    model, (x, y) = network(init).eval(), batch()
    whole = efx.relevance(model, x, y, "gradient")
    with pytest.raises(ValueError, match=r"x must be signals \(N, C, L\), got shape \[2, 40\]"):
        efx.relevance(model, x[0], y[:1], "gradient")
    assert whole.heat.shape == (4, 40)
    for layer in ("0", "5", "11"):
        found = efx.frequency_relevance(model, x, y, layer)
        assert relative_error(sum(found.map.values()), whole.heat) < 1e-10


@pytest.mark.parametrize("criterion", CRITERIA)
def test_pruning_removes_channels_exactly(criterion: str) -> None:
    x, y = batch()
    for model in (network("dct2"), network(None)):
        options: dict[str, Any] = {"data": [(x, y)], "criterion": criterion, "granularity": "channel"}
        report = efx.channelprune(model.eval(), x[:1], amount=0.5, **options)  # compares with the masked network
        assert report.model is not None
        kept = sum(layer.out_channels for layer in report.model.modules() if isinstance(layer, nn.Conv1d))
        assert kept < sum(layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv1d))
        assert relative_error(efx.apply_plan(copy.deepcopy(model), report.plan)(x), report.model(x)) < 1e-10


@pytest.mark.parametrize("fill", ["reset", "fill_zero"])
@pytest.mark.parametrize("init", [None, "dct2"])
def test_pruned_signals_are_filled(init: str | None, fill: str) -> None:
    model = network(init).eval()
    report = efx.channelprune(model, batch()[0][:1], amount=0.3, criterion="random", fill=fill, granularity="filter")
    weights = [m.weight for m in report.model.modules() if isinstance(m, nn.Conv1d) and m.kernel_size[0] > 1]
    assert len(weights) == 3
    assert all(bool((w != 0).any(-1).all()) for w in weights)


def test_soft_pruning_of_signals() -> None:
    model = network(None)
    assert efx.soft_prune(model, 0.5) == 4 * 2 + 6 * 4 + 3 * 12
    assert int((model[0].weight == 0).flatten(1).all(1).sum()) == 4


@pytest.mark.parametrize("mode", ["exact", "recompute", "int8"])
@pytest.mark.parametrize("options", [{}, {"pointwise": True}], ids=str)
def test_memory_modes_have_the_same_gradients(mode: str, options: dict[str, Any]) -> None:
    model, (x, y) = network("dct2", **options), batch()
    ours = copy.deepcopy(model)
    changes = efx.save_memory(ours, mode)
    assert {kind for _, kind, _ in changes.left} <= {"AdaptiveAvgPool1d"}
    for net in (model, ours):
        F.cross_entropy(net(x), y).backward()
    expected, found = (torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (model, ours))
    assert relative_error(found, expected) < 1e-10
    report = efx.memory_report(ours, x)
    assert report.ours.kept_bytes < report.frozen.kept_bytes
    efx.save_memory(ours, "off")
    assert type(ours[0]) is efx.FixedConv1d


def test_pooling_of_signals_keeps_a_byte() -> None:
    pool = nn.Sequential(nn.MaxPool1d(3, 1, 1))
    x = torch.randn(2, 3, 17, requires_grad=True)
    y = pool(x)
    (want,) = torch.autograd.grad(y.square().sum(), x)
    assert efx.save_memory(pool).changed == [("0", "MaxPool1d")]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mine = pool(x)
    assert torch.equal(mine, y)
    assert [t.dtype.itemsize for t in kept] == [1]
    assert torch.equal(torch.autograd.grad(mine.square().sum(), x)[0], want)


def test_summary_counts_signals() -> None:
    model = nn.Sequential(efx.FixedConv1d(4, 8, 9, seed=0, init="dct2", padding="same", pointwise=True))
    (layer,) = efx.summary(model, (1, 4, 100)).layers
    assert layer.shape == (8, 4, 1, 9)
    assert layer.multiply_adds == (8 * 4 + 8 * 8) * 100
    assert layer.dense_multiply_adds == 8 * 4 * 9 * 100


def test_signals_run_compiled_exported_and_optimised() -> None:
    model, x = network("dct2").float().eval(), batch()[0].float()
    with torch.no_grad():
        expected = model(x)
        exported = torch.export.export(model, (x,)).module()
        assert relative_error(exported(x), expected) < 1e-5
        assert relative_error(torch.jit.trace(model, x)(x), expected) < 1e-5
        optimized = efx.optimize_for_inference(model, x)
        assert relative_error(optimized(x), expected) < 1e-5
