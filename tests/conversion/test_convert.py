"""convert and revert on real networks: what is computed, what stays, what is refused."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from support.compare import relative_error
from torch import nn

import explainfix_ext as efx
from explainfix_ext import FilterBank, FixedConv2d, convert, revert

torchvision = pytest.importorskip("torchvision", reason="torchvision (extra `models`) is not installed")
timm = pytest.importorskip("timm", reason="timm (extra `models`) is not installed")
smp = pytest.importorskip("segmentation_models_pytorch", reason="smp (extra `models`) is not installed")

tv = torchvision.models
MODELS: dict[str, tuple[Any, int]] = {  # name -> (maker, image size)
    "resnet18": (lambda: tv.resnet18(num_classes=5), 64),
    "resnet50": (lambda: tv.resnet50(num_classes=5), 64),
    "densenet121": (lambda: tv.densenet121(num_classes=5), 64),
    "efficientnet_b0": (lambda: tv.efficientnet_b0(num_classes=5), 64),
    "mobilenet_v3_small": (lambda: tv.mobilenet_v3_small(num_classes=5), 64),
    "mobilenet_v3_large": (lambda: tv.mobilenet_v3_large(num_classes=5), 64),
    "vgg16_bn": (lambda: tv.vgg16_bn(num_classes=5), 32),
    "convnext_tiny": (lambda: tv.convnext_tiny(num_classes=5), 64),
    "deeplabv3_resnet50": (lambda: tv.segmentation.deeplabv3_resnet50(weights_backbone=None, num_classes=5), 64),
    "smp.Unet": (lambda: smp.Unet("resnet18", encoder_weights=None, classes=2), 64),
    "timm.tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=5), 64),
    "timm.resnet26d": (lambda: timm.create_model("resnet26d", num_classes=5), 64),
    "timm.mobilenetv3_small_050": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), 64),
    "timm.convnext_atto": (lambda: timm.create_model("convnext_atto", num_classes=5), 64),
    "timm.regnetx_002": (lambda: timm.create_model("regnetx_002", num_classes=5), 64),
}
IN_CI = ("resnet18", "efficientnet_b0", "smp.Unet", "timm.tf_efficientnet_lite0")
ZOO = [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in MODELS]


def make(name: str, **options: Any) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    maker, size = MODELS[name]
    model, x = maker(), torch.randn(2, 3, size, size)
    if options:
        convert_quietly(model, **options)
    return model, x


def convert_quietly(model: nn.Module, *args: Any, **options: Any) -> efx.ConversionReport:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert(model, *args, **options)


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = model(x)
    return y["out"] if isinstance(y, dict) else y


def fixed_layers(model: nn.Module) -> list[FixedConv2d]:
    return [m for m in model.modules() if isinstance(m, FixedConv2d)]


@pytest.mark.parametrize("name", ZOO)
def test_unchanged_computes_what_the_model_did(name: str) -> None:
    model, x = make(name)
    model.eval()
    with torch.no_grad():
        expected = output(model, x)
        convert_quietly(model, "unchanged")
        assert relative_error(output(model, x), expected) < 1e-5
        revert(model)
        assert relative_error(output(model, x), expected) < 1e-5
    assert not fixed_layers(model)


@pytest.mark.parametrize("name", ZOO)
def test_converted_model_trains_and_survives(name: str) -> None:
    """Forward, backward; state_dict into a fresh model; copies; dtypes; devices; safetensors; EMA."""
    model, x = make(name)
    spatial = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    report = convert_quietly(model, "dct2", seed=1)
    assert len(report.converted) == len(spatial) == len(fixed_layers(model))
    assert not report.skipped
    output(model, x).square().mean().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None or key.startswith("aux_classifier."), key  # output() leaves the auxiliary head out
        assert p.grad is None or torch.isfinite(p.grad).all(), key
    model.eval()
    with torch.no_grad():
        expected = output(model, x)
        for other in survivors(name, model):
            assert torch.equal(output(other.eval(), x), expected)


def survivors(name: str, model: nn.Module):
    fresh, _ = make(name, init="ghaar4_s1", seed=5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    yield fresh

    yield copy.deepcopy(model)

    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)

    with torch.device("meta"):
        empty, _ = make(name, init="dct2", seed=2)
    empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    for plain, filled in zip(model.buffers(), empty.buffers(), strict=True):
        filled.copy_(plain)  # what is not persistent
    yield empty

    yield model.to("cpu", torch.float64).to(torch.float32)

    safetensors = pytest.importorskip("safetensors.torch")
    data = safetensors.save({k: v.contiguous() for k, v in model.state_dict().items()})
    fresh, _ = make(name, init="dct2", seed=3)
    fresh.load_state_dict(safetensors.load(data))
    yield fresh

    ema = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    ema.update_parameters(model)
    yield ema.module


@pytest.mark.parametrize("name", ZOO)
def test_half_and_back(name: str) -> None:
    model, _ = make(name, init="dct2")
    filters = [layer.weight for layer in fixed_layers(model)]
    model.half().float()
    assert all(torch.equal(layer.weight, w) for layer, w in zip(fixed_layers(model), filters, strict=True))


@pytest.mark.parametrize("name", ZOO)
def test_compile_and_export(name: str) -> None:
    model, x = make(name, init="dct2")
    model.eval()
    with torch.no_grad():
        expected = output(model, x)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert relative_error(output(compiled, x), expected) < 1e-5
        program = torch.export.export(model, (x,))
        assert relative_error(output(program.module(), x), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_inductor_training_step(name: str) -> None:
    model, x = make(name, init="dct2")
    model.eval()  # batch statistics of two images would amplify rounding
    output(model, x).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    output(torch.compile(model, fullgraph=True), x).sum().backward()
    for n, p in model.named_parameters():
        assert relative_error(p.grad, expected[n]) < 1e-3, n


class Net(nn.Module):
    """A bit of everything that a conversion may meet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), self.shared)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.tied_a, self.tied_b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.tied_b.weight = self.tied_a.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
        self.lazy = nn.LazyConv2d(8, 3)
        self.sub = Subclass(8, 8, 3)
        self.renamed = Renamed(8, 8, 3)
        self.patched = nn.Conv2d(8, 8, 3)
        self.patched.forward = self.patched.forward
        self.complex = nn.Conv2d(8, 8, 3, dtype=torch.complex64)

    def forward(self, x):
        return self.block(self.shared(self.stem(x)))


class Subclass(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Renamed(nn.Conv2d):
    """Overrides nothing that matters."""


def test_report_names_what_is_left_and_why() -> None:
    net = Net()
    report = convert_quietly(net)
    assert [layer.name for layer in report.converted] == ["stem", "shared", "renamed"]
    reasons = {layer.name: layer.reason for layer in report.skipped}
    assert reasons["up"] == "spatial, still learned: only Conv2d can be fixed"
    assert reasons["tied_a"] == reasons["tied_b"] == "its weight is shared with another layer"
    assert reasons["normed"] == "its weight is parametrized"
    assert reasons["lazy"] == "lazy: run the model once, then convert"
    assert reasons["sub"] == "Subclass overrides forward, and explainfix_ext does not know how"
    assert reasons["patched"] == "its forward was replaced on the instance"
    assert reasons["complex"] == "its dtype is complex64"
    assert net.block[1] is net.shared, "a module used twice stays one module"
    assert report.pointwise_learned == 1
    text = str(report)
    assert "3 spatial convolutions fixed, 8 left" in text
    assert all(name in text for name in reasons)


def test_parameters_hooks_modes_and_attributes_stay() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1).double().eval()
    conv.note = "kept"
    calls = []
    handle = conv.register_forward_hook(lambda *a: calls.append(1))
    model = nn.Sequential(conv, nn.BatchNorm2d(8)).double()
    before = {k: id(p) for k, p in model.named_parameters()}
    convert_quietly(model)
    after = {k: id(p) for k, p in model.named_parameters()}
    assert after == {k: v for k, v in before.items() if k != "0.weight"}
    assert not model[0].training
    assert model[0].note == "kept"
    assert model[0].weight.dtype == torch.float64
    model(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    handle.remove()
    model(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert len(calls) == 1
    assert set(nn.Sequential(conv, nn.BatchNorm2d(8)).state_dict()) - set(model.state_dict()) == {"0.weight"}


def test_seeds_depend_on_the_name_and_the_seed() -> None:
    def seeds(seed: int) -> list[int]:
        return [layer.seed for layer in convert_quietly(tv.resnet18(), seed=seed).converted]

    assert len(set(seeds(0))) == 17
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


def test_init_by_glob_callable_and_bank() -> None:
    model = tv.resnet18()
    report = convert_quietly(model, {"conv1": "unchanged", "layer[12].*": "ghaar4_s1"})
    assert {layer.name.split(".")[0]: layer.init for layer in report.converted} == {
        "conv1": "unchanged",
        "layer1": "ghaar4_s1",
        "layer2": "ghaar4_s1",
    }
    assert {layer.reason for layer in report.skipped} == {"no glob of init matches"}

    def choose(name: str, conv: nn.Conv2d) -> str | FilterBank | None:
        if name == "conv1":
            return FilterBank.from_weight(conv.weight, rank=3)
        return "psine" if conv.stride == (2, 2) else None

    model = tv.resnet18()
    report = convert_quietly(model, choose)
    assert model.conv1.bank.rank == 3
    assert [layer.init for layer in report.converted] == ["given bank", "psine", "psine", "psine"]
    assert {layer.reason for layer in report.skipped} == {"init returned None"}


def test_include_and_exclude() -> None:
    report = convert_quietly(tv.resnet18(), include="layer1.*", exclude=["*.conv2"])
    assert [layer.name for layer in report.converted] == ["layer1.0.conv1", "layer1.1.conv1"]


def test_extra_parameters_stay() -> None:
    conv = nn.Conv2d(3, 8, 3)
    conv.gamma = nn.Parameter(torch.ones(8))
    model = nn.Sequential(conv)
    convert_quietly(model)
    assert model[0].gamma is conv.gamma
    assert list(revert(model).state_dict()) == ["0.weight", "0.bias", "0.gamma"]


def test_dry_run_changes_nothing() -> None:
    model = tv.resnet18()
    keys = list(model.state_dict())
    assert len(convert(model, dry_run=True).converted) == 17
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "dct3"}, "unknown init 'dct3'; nearest: dct2"),
        ({"init": {"*": "dct3"}}, "unknown init 'dct3'"),
        ({"density": 2}, "density must be in"),
        ({"energy": 0.5}, "init 'dct2' takes no option 'energy'"),
        ({"init": 5}, "init must be a name, a dict of globs to names, or a callable, got int"),
        ({"init": lambda name, conv: [1]}, "conv1: bank must be a FilterBank .* got list"),
        ({"include": "layre*"}, "include must match a spatial convolution, such as conv1, got 'layre"),
        (
            {"init": lambda name, conv: "ones" if name == "conv1" else efx.make_bank("ones", 1, 1, 3, seed=0)},
            "bank must",
        ),
    ],
)
def test_a_failed_conversion_changes_nothing(options: dict[str, Any], message: str) -> None:
    model = tv.resnet18()
    before = {k: id(v) for k, v in model.named_parameters()}
    with pytest.raises((ValueError, TypeError), match=message):
        convert(model, **options)
    assert {k: id(v) for k, v in model.named_parameters()} == before


def test_nothing_to_convert() -> None:
    with pytest.raises(ValueError, match="no spatial Conv2d"):
        convert(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(TypeError, match="from_conv2d"):
        convert(nn.Conv2d(3, 3, 3))
    with pytest.raises(TypeError, match="to_conv2d"):
        revert(FixedConv2d(3, 3, 3))
    model = nn.Sequential(FixedConv2d(3, 3, 3))
    with pytest.raises(ValueError, match="fixed already"):
        convert(model)


def test_warns_where_little_is_left_to_learn() -> None:
    with pytest.warns(UserWarning, match="pointwise=True"):
        convert(tv.resnet18())
    with pytest.warns(UserWarning, match="20 convolutions|13 convolutions"):
        convert(tv.vgg16_bn())
    for model, options in ((tv.resnet50(), {}), (tv.efficientnet_b0(), {}), (tv.resnet18(), {"pointwise": True})):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            convert(model, **options)


def test_pointwise_and_learned_coefficients_learn() -> None:
    for options, name in (({"pointwise": True}, "pointwise"), ({"learn_coeff": True}, "coeff")):
        model, x = make("resnet18", init="dct2", **options)
        output(model, x).sum().backward()
        learned = [p for n, p in model.named_parameters() if n.endswith(name)]
        assert len(learned) == 17
        assert all(p.grad.abs().sum() > 0 for p in learned)


def test_revert_folds_the_pointwise_in() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 6, (1, 3)))
    x = torch.randn(2, 4, 9, 9)
    for layer in (0, 1):
        model[layer] = FixedConv2d.from_conv2d(model[layer], "psine", seed=1, pointwise=True)
    y = model(x)
    revert(model, requires_grad=True)
    assert [type(m) for m in model] == [nn.Conv2d, nn.Conv2d]
    assert model[0].weight.requires_grad
    assert relative_error(model(x), y) < 1e-5


def test_checkpoint_of_fixed_resnet50_is_small() -> None:
    def size(model: nn.Module) -> int:
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        return file.tell()

    model = tv.resnet50()
    learned = size(model)
    convert_quietly(model)
    assert size(model) < 0.6 * learned


def test_timm_same_padding_is_converted_as_itself() -> None:
    model, x = make("timm.tf_efficientnet_lite0", init="unchanged")
    kinds = {type(layer).__name__ for layer in fixed_layers(model)}
    assert "FixedConv2dSame" in kinds
    revert(model)
    assert "Conv2dSame" in {type(m).__name__ for m in model.modules()}
    for size in (63, 64, 97):  # the padding depends on the size
        odd = torch.randn(1, 3, size, size)
        plain, _ = make("timm.tf_efficientnet_lite0")
        fixed = copy.deepcopy(plain)
        convert_quietly(fixed, "unchanged")
        assert relative_error(fixed.eval()(odd), plain.eval()(odd)) < 1e-5


def test_summary_counts(capsys: pytest.CaptureFixture) -> None:
    model, _ = make("resnet18", init="dct2", density=0.1)
    result = efx.summary(model, (1, 3, 64, 64))
    assert len(result.layers) == 17
    layer = result.layers[1]
    assert layer.shape == (64, 64, 3, 3)
    assert layer.nonzero == 410
    assert layer.kernel == "index"
    assert layer.multiply_adds == 410 * 16 * 16
    assert layer.dense_multiply_adds == 64 * 64 * 9 * 16 * 16
    assert layer.dense_bytes == 64 * 64 * 9 * 4
    assert layer.stored_bytes == 64 * 64 + 9 * 9 * 8 + model.layer1[0].conv1.kernel_plan.packed.nbytes
    assert model.training
    text = str(result)
    assert "layer1.0.conv1" in text
    assert "64x64x3x3 (410)" in text
    dense, _ = make("resnet18", init="dct2", density=0.1, plan="dense")
    dense_layer = efx.summary(dense).layers[1]
    assert dense_layer.kernel == "dense"
    assert dense_layer.stored_bytes == 64 * 64 + 9 * 9 * 8
    dense.eval()
    with torch.no_grad():
        dense(torch.randn(1, 3, 64, 64))
    assert efx.summary(dense).layers[1].kernel == "dense, weight kept"
    assert efx.summary(dense).layers[1].stored_bytes == dense_layer.stored_bytes + layer.dense_bytes


def test_sparse_depthwise_layers_are_warned_of() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 64, 1), nn.Conv2d(64, 8, 1))
    dense = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="1 depthwise layers have zero filters.*with density=1"):
        efx.convert(model, "dct2", density=0.1, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        efx.convert(dense, "dct2", seed=0)
        efx.convert(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 8)), "dct2", density=0.5, seed=0)
