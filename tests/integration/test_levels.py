"""Layers with several dilations in whole networks: tracers, pruning, memory modes, deployment, pictures of filters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.training_step import EXACT, check_saving, image, prepared
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext import CoConv2d, FixedConv2d
from explainfix_ext.prune.cut.layers import cut_layer_

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")

LEVELS: dict[str, Any] = {"first": (1, 2, 3, 4), "second": (1, 2), "deep": (1, 2, 3)}


class Net(nn.Module):
    """Convolutions with levels: a first one, a strided one between learned 1x1, and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.Conv2d(16, 16, 1)
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (16, 16, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.first(x)).relu()
        x = self.norms[1](self.mix(x)).relu()
        x = self.norms[2](self.second(x)).relu()
        return self.head(self.deep(x).mean((2, 3)))


def net(kind: str = "dct2", **options: Any) -> Net:
    """A fixed network, or with kind "learned" one of CoConv2d."""
    torch.manual_seed(0)
    model = Net()
    efx.convert(model, "unchanged" if kind == "learned" else kind, dilations=LEVELS, **options)
    return efx.revert(model, requires_grad=True) if kind == "learned" else model  # type: ignore[return-value]


def test_convert_says_which_layers_are_split() -> None:
    model = Net()
    report = efx.convert(model, "dct2", dilations={"first": (1, 2), "*ec*": (2,)}, dry_run=True)
    assert not isinstance(model.first, FixedConv2d)
    assert "Conv2d 3->16 3x3, dilations 1 2 " in str(report)
    assert [layer.kind.partition("dilations")[2] for layer in report.converted] == [" 1 2", " 2", ""]
    efx.convert(model, "dct2", dilations=(1, 3))
    assert model.deep.levels == ((1, 16), (3, 16))
    for wrong, message in (
        ({"third": (1, 2)}, "dilations must have globs that match a spatial Conv2d, got 'third'"),
        ({"first": (1, -2)}, r"dilations must be 1 to 5 positive integers, got \(1, -2\)"),
        ({"deep": (1,) * 6}, "dilations must be 1 to 5 positive integers"),
    ):
        plain = Net()
        with pytest.raises(ValueError, match=message):
            efx.convert(plain, "dct2", dilations=wrong)
        assert type(plain.first) is nn.Conv2d
    with pytest.raises(ValueError, match=r"^0: dilations need a kernel of odd size, got \(2, 2\)"):
        efx.convert(nn.Sequential(nn.Conv2d(8, 8, 2)), "dct2", dilations=(1, 2))


def test_a_learned_layer_is_fixed_with_its_levels_and_back() -> None:
    model, x = net("learned").eval(), torch.randn(2, 3, 20, 18)
    assert type(model.second) is CoConv2d
    expected = model(x)
    efx.convert(model, "unchanged")
    assert model.second.levels == ((1, 16), (2, 16))
    assert relative_error(model(x), expected) < 1e-5
    assert relative_error(efx.plain(model)(x), expected) < 1e-5


def test_timm_layers_that_pad_by_themselves_are_refused() -> None:
    layers = pytest.importorskip("timm.layers", reason="timm (extra `models`) is not installed")
    model = nn.Sequential(layers.Conv2dSame(4, 8, 3))
    with pytest.raises(ValueError, match="0: dilations are not for Conv2dSame, which pads in its own way"):
        efx.convert(model, "dct2", dilations=(1, 2))


# --- tracers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dct2", "hadamard", "ghaar4_s1", "learned"])
def test_export_and_compile(kind: str) -> None:
    model, x = net(kind).eval(), torch.randn(2, 3, 40, 36)
    expected = model(x)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    assert relative_error(program.module()(x), expected) < 1e-5
    assert program.module()(x.repeat(2, 1, 1, 1)).shape == (4, 5)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), expected) < 1e-5
    (dx,), (want,) = (
        torch.autograd.grad(m(y).sum(), y) for m in (compiled, model) for y in [x.clone().requires_grad_()]
    )
    assert relative_error(dx, want) < 1e-5


# --- pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["dct2", "hadamard", "ghaar4_s1"])
@pytest.mark.parametrize("options", [{}, {"groups": 8}, {"learn_coeff": True}, {"learned": True}], ids=str)
def test_channels_that_stay_keep_their_dilation(init: str, options: dict[str, Any]) -> None:
    learned, groups = options.pop("learned", False), options.get("groups", 1)
    conv: Any = FixedConv2d(16, 16, 3, padding=1, init=init, seed=0, dilations=(1, 2, 3), **options)
    conv = conv.to_conv2d() if learned else conv
    x = torch.randn(2, 16, 11, 12)
    outputs = torch.tensor([0, 1, 4, 5, 12, 13])  # none of the second level
    inputs = None if groups == 1 else outputs
    expected = conv(x)[:, outputs]
    cut_layer_(conv, inputs, outputs)
    assert conv.levels == ((1, 4), (3, 2))
    assert relative_error(conv(x if inputs is None else x[:, inputs]), expected) < 1e-5
    assert relative_error(copy.deepcopy(conv)(x if inputs is None else x[:, inputs]), expected) < 1e-5


@pytest.mark.parametrize("kind", ["dct2", "hadamard", "learned"])
def test_channelprune_sees_one_layer(kind: str) -> None:
    model, x = net(kind), torch.randn(2, 3, 20, 18)
    settings: dict[str, Any] = {"granularity": "channel", "criterion": "random", "bn_bias": "drop"}
    report = efx.channelprune(model, x, amount=0.4, verify=True, **settings)
    assert "verified" in str(report)
    pruned = report.model
    for layer in (pruned.first, pruned.second, pruned.deep):
        assert sum(size for _, size in layer.levels) == layer.out_channels
    assert len(pruned.first.levels) == 4
    assert pruned.second.out_channels < 32
    again: Any = efx.apply_plan(net(kind), report.plan)
    again.load_state_dict(pruned.state_dict())
    assert again.second.levels == pruned.second.levels
    assert relative_error(again.eval()(x), pruned.eval()(x)) < 1e-6


@pytest.mark.parametrize("criterion", ["response", "obs"])
def test_scores_by_patches_are_of_one_dilation(criterion: str) -> None:
    x = torch.randn(2, 3, 20, 18)
    with pytest.raises(ValueError, match='"response" and "obs" take layers of one dilation, and first has several'):
        efx.channelprune(net(), x, data=[(x, torch.tensor([0, 1]))], amount=0.2, criterion=criterion)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("init", ["dct2", "hadamard", "ghaar4_s1"])
@pytest.mark.parametrize("way", [{}, {"pointwise": True}, {"learn_coeff": True}], ids=str)
def test_memory_modes_keep_gradients(init: str, way: dict[str, Any], mode: str) -> None:
    check_saving(prepared(net(init, **way)), image(), mode)


def test_recompute_keeps_no_more_than_of_one_dilation() -> None:
    from explainfix_ext.memory.count import saved_bytes

    x, kept = torch.randn(4, 3, 32, 32), []
    for dilations in (None, LEVELS):
        model = Net()
        efx.convert(model, "dct2", dilations=dilations, memory="recompute")
        kept.append(saved_bytes(model, lambda model: model(x).sum()))
    assert kept[1] <= kept[0] * 1.02


# --- deployment -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dct2", "learned"])
def test_optimize_for_inference_leaves_them(kind: str) -> None:
    model, x = net(kind).eval(), torch.randn(2, 3, 20, 18)
    optimized = efx.optimize_for_inference(model, x)
    with torch.no_grad():
        assert relative_error(optimized(x), model(x)) < 1e-5


@pytest.mark.parametrize("plain", [True, False])
def test_onnx(plain: bool, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime (extra `onnx`) is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript (extra `onnx`) is not installed")
    from explainfix_ext.onnx import export, library

    model, x, path = net("dct2").eval(), torch.randn(2, 3, 20, 18), tmp_path / "model.onnx"
    became = export(model, x, path, plain=plain)
    assert sum(name.startswith("first") for name in became) == 4  # one convolution for each dilation
    options = runtime.SessionOptions()
    if not plain:
        try:
            options.register_custom_ops_library(library())
        except FileNotFoundError:
            pytest.skip("the library of ONNX operators was not built")
    session = runtime.InferenceSession(path, options)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert relative_error(torch.from_numpy(y), model(x)) < 1e-5


# --- what is said of the filters --------------------------------------------------------------------------------------


def test_saliency_is_that_of_the_learned_layer() -> None:
    model, data = net("ghaar4_s1").double(), [(torch.randn(1, 3, 20, 18).double(), torch.tensor([k])) for k in (0, 3)]
    scores = efx.saliency(model, data)
    twin = efx.revert(copy.deepcopy(model), requires_grad=True).eval()
    for name in LEVELS:
        weight, products = twin.get_submodule(name).weight, []
        for x, y in data:
            (gradient,) = torch.autograd.grad(twin(x)[0, y.item()], weight)
            products.append((weight.detach() * gradient).abs().sum((-2, -1)))
        assert relative_error(scores[name], torch.stack(products).mean(0)) < 1e-10


def test_frequencies_add_up_to_the_whole() -> None:
    model, x = net("ghaar4_s1").eval(), torch.randn(2, 3, 20, 18)
    bands = {"some": range(4), "others": range(4, 9)}
    found = efx.frequency_relevance(model, x, 1, "second", bands)
    outputs: list[Tensor] = []
    hook = model.second.register_forward_hook(lambda module, args, y: outputs.append(y))
    logit = model(x.requires_grad_())[:, 1].sum()
    hook.remove()
    (flow,) = torch.autograd.grad(logit, outputs)
    part = (outputs[0] - model.second.bias[:, None, None]) * flow
    assert relative_error(found.amount["some"] + found.amount["others"], part.sum((1, 2, 3))) < 1e-4


def test_a_frequency_of_a_wider_level_counts_less() -> None:
    conv = FixedConv2d(9, 18, 3, init="dct2", seed=0, dilations=(1, 3))  # each output takes each of 9 functions once
    plain = FixedConv2d(9, 18, 3, init="dct2", seed=0)
    spectra, one = efx.explainsteer(conv), efx.explainsteer(plain)
    assert torch.equal(spectra.ed[""], one.ed[""])
    assert torch.allclose(spectra.by_level[""].sum(0), spectra.ed[""])
    assert spectra.centre[""] == pytest.approx((0.5 + 0.5 / 3) / 2)
    assert spectra.low[""] == spectra.flat[""] == pytest.approx((3 / 9 + 1) / 2)
    assert str(spectra).splitlines()[0].split()[:4] == ["layer", "filters", "kernel", "scale"]
    assert str(spectra).splitlines()[1].split()[3:5] == ["1", "3"]
    assert "scale" not in str(one)
    again = efx.Spectra.from_json(spectra.to_json())
    assert (again.levels, again.centre, again.low) == (spectra.levels, spectra.centre, spectra.low)
