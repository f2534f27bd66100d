"""GroupNorm, LayerNorm and LayerNorm2d, Linear, activations without a BatchNorm, Ghost modules: torch's gradients, and
fewer bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from support.training_step import EXACT, check_same, check_saving, gradient_error, image, mean_square, prepared, step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import explainfix_ext as efx
from explainfix_ext.memory import memory_report, norms, save_memory
from explainfix_ext.memory.count import count_step
from explainfix_ext.memory.notes import replay_of


class _Twice(nn.Module):
    """Reads the input of its layers once more, and their output twice."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return self.head(y) * y + x.mean()


class _Permute(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


def _grouped(act: nn.Module) -> nn.Module:
    first = efx.FixedConv2d(3, 8, 3, 1, 1, seed=0)
    return _Twice(first, nn.GroupNorm(4, 8), copy.deepcopy(act), nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), act)


def _convnext() -> nn.Module:
    into, back = _Permute(0, 2, 3, 1), _Permute(0, 3, 1, 2)
    stem = nn.Sequential(nn.Conv2d(3, 8, 1), efx.FixedConv2d(8, 8, 3, 1, 1, seed=0))
    return nn.Sequential(stem, into, nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), back)


NETS: dict[str, Callable[[], nn.Module]] = {
    "GroupNorm, ReLU": lambda: _grouped(nn.ReLU(inplace=True)),
    "GroupNorm, SiLU": lambda: _grouped(nn.SiLU()),
    "GroupNorm, SiLU in place": lambda: _grouped(nn.SiLU(inplace=True)),
    "LayerNorm, Linear, GELU": _convnext,
    "no weight": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8, affine=False), nn.SiLU(), nn.Conv2d(8, 4, 1)
    ),
    "no bias": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.LayerNorm(17, bias=False), nn.Hardswish(), nn.Linear(17, 4, bias=False)
    ),
    "frozen": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8).requires_grad_(False), nn.GELU(), nn.Conv2d(8, 4, 1)
    ),
}


def _net(name: str) -> nn.Module:
    """Gives all parameters values in which an error would show."""
    torch.manual_seed(0)
    model = NETS[name]().double()
    for p in model.parameters():
        nn.init.uniform_(p, 0.2, 1.0)
    return model


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_exact(name: str, mode: str, layout: torch.memory_format) -> None:
    model = _net(name).to(memory_format=layout)
    x = image().contiguous(memory_format=layout)
    check_saving(model, x, mode)
    check_saving(model.eval(), x, mode)


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name", ["GroupNorm, ReLU", "GroupNorm, SiLU", "LayerNorm, Linear, GELU"])
def test_fewer_bytes_are_kept(name: str, mode: str) -> None:
    model, x = _net(name).float(), image(dtype=torch.float32)
    before = memory_report(model, x).ours.kept_bytes
    save_memory(model, mode)
    assert memory_report(model, x).ours.kept_bytes < 0.9 * before


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("home", ["torchvision.models.convnext", "timm.layers"])
def test_layer_norm_2d(home: str, mode: str, layout: torch.memory_format) -> None:
    """In torch the norm keeps its input and the convolution the norm's output."""
    kind = pytest.importorskip(home).LayerNorm2d
    affine = {} if home.startswith("timm") else {"elementwise_affine": False}
    twice = _Twice(kind(8, **affine), nn.SiLU())
    model = nn.Sequential(nn.Conv2d(3, 8, 1), kind(8, eps=1e-6), twice, nn.Conv2d(8, 4, 2, 2)).double()
    for p in model.parameters():
        nn.init.uniform_(p, 0.2, 1.0)
    model, x = model.to(memory_format=layout), image().contiguous(memory_format=layout)
    check_saving(model.eval(), x, mode, tolerance=1e-12)
    check_saving(model.requires_grad_(False), x, mode, tolerance=1e-12)
    ours = check_saving(model.requires_grad_(True), x, mode, tolerance=1e-12)
    assert type(ours[1]) is not kind
    assert memory_report(ours, x).ours.kept_bytes < 0.8 * memory_report(model, x).ours.kept_bytes


def test_large_activations_are_made_in_parts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv2d(32, 4, 1)).double()
    check_saving(model, image(4, size=200), "exact")


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("name", ["GroupNorm, SiLU", "LayerNorm, Linear, GELU"])
def test_checkpoints_and_compile(name: str, mode: str) -> None:
    def checkpointed(model: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(model, x * 1, use_reentrant=False).square().mean()

    def compiled(model: nn.Module, x: Tensor) -> Tensor:
        return torch.compile(model, backend="aot_eager")(x).square().mean()

    for loss in (checkpointed, compiled):
        check_saving(_net(name), image(), mode, loss, 1e-9)


@pytest.mark.parametrize("mode", [*EXACT, "int8"])
@pytest.mark.parametrize("name", NETS)
def test_autocast(name: str, mode: str) -> None:
    """A norm runs in the dtype of torch's own; what is rebuilt has the same dtype."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return mean_square(model, x).float()

    model, x = _net(name).float(), image(dtype=torch.float32)
    if mode != "int8":
        check_saving(model, x, mode, loss, 1e-6)
        return
    plain = step(model, x, loss)
    save_memory(model, mode)
    assert gradient_error(plain, step(model, x, loss), [n for n in plain if n.endswith(("weight", "bias"))]) < 0.01


class _InFloat32(nn.Module):
    """Runs a norm as CUDA's autocast does, which casts its input."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float())


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("norm", [nn.LayerNorm(17), nn.GroupNorm(2, 8)], ids=str)
def test_autocast_of_a_gpu(norm: nn.Module, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm's input is kept in 16 bits. Torch keeps it in 32, and the cast output."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return mean_square(model, x).float()

    monkeypatch.setattr(norms, "_dtype_of", lambda x: torch.float32)
    ours = nn.Sequential(nn.Conv2d(3, 8, 1), copy.deepcopy(norm), nn.Hardswish(), nn.Conv2d(8, 4, 1), nn.Linear(17, 2))
    plain = copy.deepcopy(ours)
    plain[1] = _InFloat32(plain[1])
    save_memory(ours, mode)
    kept = [
        count_step(model, lambda model: loss(model, image(dtype=torch.float32))).kept_bytes for model in (ours, plain)
    ]
    assert kept[0] < (0.4 if mode == "exact" else 0.7) * kept[1]
    want, got = (step(model, image(dtype=torch.float32), loss) for model in (plain, ours))
    check_same({name.replace(".norm", ""): value for name, value in want.items()}, got, 1e-3)


def test_copies_and_no_grad() -> None:
    model, x = _net("LayerNorm, Linear, GELU"), image()
    plain = step(model, x)
    save_memory(model, "exact")
    with torch.no_grad():
        assert replay_of(model[:5](x)) is None
    again = copy.deepcopy(model)
    torch.testing.assert_close(step(again, x), plain)
    save_memory(again, "off")
    assert type(again[2]) is nn.LayerNorm
    assert type(again[3]) is nn.Linear


@pytest.mark.parametrize(
    ("name", "size", "share"),
    [("ghostnet_100", 64, 0.6), ("ghostnetv2_100", 64, 0.6), ("convnext_atto", 64, 0.6), ("test_vit", 160, 0.7)],
)
def test_timm(name: str, size: int, share: float) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name)
    if name != "test_vit":
        efx.convert(model, "dct2", seed=0)
    model, x = prepared(model.train()), image(2, size=size)
    for mode in EXACT:
        check_saving(model, x, mode, tolerance=1e-9)
    save_memory(model, "recompute")
    report = memory_report(model, x)
    assert report.ours.kept_bytes < share * report.frozen.kept_bytes
