"""Each step that can run a layer computes what the layer does, with its BatchNorm, activation and addition."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from support.bench_networks import randomise_norms
from support.compare import relative_error
from support.inits import DRAWN
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.deploy import choose
from explainfix_ext.deploy.alternatives import Affine, alternatives
from explainfix_ext.deploy.steps import Activation, FixedStep
from explainfix_ext.ops import binaries
from explainfix_ext.ops.passes import ACTIVATIONS, activate

GEOMETRIES: list[dict[str, Any]] = [
    {"padding": 1},
    {"padding": (2, 0), "stride": 2, "bias": False},
    {"padding": "same", "kernel_size": 5},
    {"padding": "same", "kernel_size": 4, "groups": 2},
    {"padding": 1, "groups": 8},
    {"padding": 2, "groups": 8, "kernel_size": 5, "stride": 2, "bias": False},
    {"padding": 2, "dilation": 2, "stride": (1, 2)},
    {"padding": 1, "padding_mode": "reflect", "groups": 4},
    {"padding": (1, 2), "padding_mode": "circular", "stride": 2, "groups": 8},
    {"kernel_size": (1, 7), "padding": (0, 3)},
]


def fixed(init: str, geometry: dict[str, Any], inputs: int = 8, **options: Any) -> efx.FixedConv2d:
    conv = nn.Conv2d(inputs, 8, **{"kernel_size": 3, **geometry})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return efx.FixedConv2d.from_conv2d(conv, init, seed=0, **options)


@torch.no_grad()
def check(conv: nn.Conv2d, rng: random.Random, expects: str = "") -> None:
    """All alternatives, with and without what may follow, against the layer in float64."""
    norm = randomise_norms(nn.BatchNorm2d(conv.out_channels)).eval() if rng.random() < 0.7 else None
    act, slope = rng.choice(list(ACTIVATIONS)), 0.2
    x = torch.randn(2, conv.in_channels, rng.choice([9, 14]), rng.choice([8, 21]))
    y = conv.double()(x.double())
    y = y if norm is None else norm.double()(y)
    residual = torch.randn(y.shape) if rng.random() < 0.5 else None
    want = activate(y if residual is None else y + residual.double(), act, slope)
    affine = None if norm is None else Affine.of(norm)
    steps = alternatives(conv.float(), affine, Activation(act, slope))
    for step in steps:
        assert relative_error(step(x, residual), want) < 3e-6, f"{step.describe()} of {conv}, {act}"
    assert steps
    assert expects in [step.describe() for step in steps] or not expects


@pytest.mark.parametrize("init", [*DRAWN, "unchanged"])
def test_steps_of_fixed_layers(init: str) -> None:
    rng = random.Random(init)
    for geometry in GEOMETRIES:
        try:
            layer = fixed(init, geometry)
        except ValueError:  # not every initialisation is for every kernel
            assert geometry.get("kernel_size", 3) != 3 or geometry.get("groups", 1) > 1
            continue
        check(layer, rng)
        if layer.groups == 1:
            check(fixed(init, geometry, pointwise=True), rng)


@pytest.mark.parametrize(
    "options", [{"density": 0.2}, {"learn_coeff": True}, {"density": 0.3, "pointwise": True}], ids=str
)
@pytest.mark.parametrize("init", ["dct2", "ghaar4_s1", "auto"])
def test_steps_of_sparse_learned_and_mixed_filters(init: str, options: dict[str, Any]) -> None:
    rng = random.Random(0)
    for geometry in GEOMETRIES[:4]:
        check(fixed(init, geometry, **options), rng)
        check(fixed(init, {**geometry, "groups": 1}, 3, **options), rng)


def test_steps_of_learned_layers() -> None:
    for seed in range(40):
        rng = random.Random(seed)
        geometry = rng.choice(
            [*GEOMETRIES, {"kernel_size": 1}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 1, "groups": 2}]
        )
        check(nn.Conv2d(8, 8, **{"kernel_size": 3, **geometry}), rng)


@pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels")
def test_the_kernel_of_each_kind_of_filters_is_among_them() -> None:
    rng = random.Random(0)
    one = {"padding": 1}
    check(fixed("dct2", one), rng, "index kernel")
    check(fixed("ghaar4_s1", one), rng, "low_rank kernel")
    check(fixed("hadamard", one), rng, "hadamard kernel")
    check(fixed("dct2", {**one, "groups": 8}), rng, "depthwise kernel")
    check(fixed("dct2", one, pointwise=True), rng, "index kernel, 1x1 kernel")
    check(nn.Conv2d(8, 8, 1), rng, "1x1 kernel")


def test_a_first_layer_and_its_1x1_run_as_one() -> None:
    layer = fixed("ghaar4_s1", {"padding": 1}, 1, pointwise=True)
    steps = alternatives(layer, None, Activation())
    assert any("1x1" not in step.describe() and isinstance(step, FixedStep) for step in steps)


def test_subnormal_weights_become_zero() -> None:
    conv = nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 1e-40], [1e-42, -2.0]]).view(2, 2, 1, 1))
    for step in alternatives(conv, None, Activation()):
        assert step.weight.flatten().tolist() == [1, 0, 0, -2]


@pytest.mark.parametrize("seed", range(4))
def test_a_network_of_any_choices_is_the_model(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says, the outputs are right."""
    rng = random.Random(seed)

    def seconds(step: nn.Module, inputs: Any, options: Any) -> float:
        step(*inputs, **options)
        return rng.random()

    monkeypatch.setattr(choose, "_seconds", seconds)
    layers = [fixed("dct2", {"padding": 1}, 3, pointwise=True), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [fixed("ghaar4_s1", GEOMETRIES[0]), fixed("dct2", GEOMETRIES[4]), nn.BatchNorm2d(8), nn.SiLU()]
    model = nn.Sequential(*layers, nn.Conv2d(8, 5, 1), nn.Hardswish())
    model = randomise_norms(model).eval()
    x = torch.randn(2, 3, 17, 12)
    fast = efx.optimize_for_inference(model, x)
    assert not fast.reason
    with torch.no_grad():
        assert relative_error(fast(x), model.double()(x.double())) < 1e-5


def test_the_fastest_step_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {1: 3.0, 2: 1.0, 3: 2.0}

    class Times(nn.Module):
        def __init__(self, factor: int) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    monkeypatch.setattr(choose, "_seconds", lambda step, inputs, options: times[step.factor])
    choice = choose.Choice([Times(n) for n in times])
    assert choice(torch.ones(1)).item() == 2
    times[1] = 0.5  # it was chosen in the first call
    assert choice(torch.ones(1)).item() == 2
