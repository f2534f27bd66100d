"""A dilated convolution with stride 1 runs by its phases, on the kernels that have no dilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.compare import TOLERANCE, relative_error

import explainfix_ext as efx
from explainfix_ext.ops import binaries
from explainfix_ext.ops.plans import phases
from explainfix_ext.ops.plans.plan import make_plan

pytestmark = pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels: all plans are dense")

PLANS = {"index": "dct2", "hadamard": "hadamard"}
GEOMETRIES: list[dict[str, Any]] = [
    {"dilation": 2, "padding": 2},
    {"dilation": (3, 2), "padding": (1, 4), "size": (13, 17)},
    {"dilation": (1, 4), "padding": 0, "size": (5, 23)},
    {"dilation": 3, "padding": "same", "kernel": 5, "size": (16, 15)},
    {"dilation": 5, "padding": 7, "size": (4, 6)},  # phases of one row, or of none but padding
    {"dilation": 2, "padding": 1, "groups": 4, "size": (9, 8)},
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the convolutions that run by phases."""
    found: list[int] = []
    convolve = phases.convolve
    monkeypatch.setattr(phases, "convolve", lambda *args: found.append(1) or convolve(*args))
    return found


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_equals_float64(plan: str, geometry: dict[str, Any], calls: list[int]) -> None:
    geometry = {"groups": 1, "kernel": 3, "size": (12, 14)} | geometry
    size, kernel = geometry.pop("size"), geometry.pop("kernel")
    bank = efx.make_bank(PLANS[plan], 12, 8, kernel, groups=geometry["groups"], seed=0)
    x, bias = torch.randn(2, 8, *size, requires_grad=True), torch.randn(12, requires_grad=True)
    y = efx.fixed_conv2d(x, bank, bias, plan=plan, **geometry)
    assert len(calls) == 1
    exact = [t.detach().double().requires_grad_() for t in (x, bias)]
    expected = F.conv2d(exact[0], bank.weight(torch.float64), exact[1], **geometry)
    assert relative_error(y, expected) <= TOLERANCE[torch.float32]
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, bias), grad)
    for ours, theirs in zip(found, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert relative_error(ours, theirs) <= TOLERANCE[torch.float32]
    with torch.no_grad():
        assert torch.equal(efx.fixed_conv2d(x, bank, bias, plan=plan, **geometry), y)
        assert relative_error(efx.fixed_conv2d(x[0], bank, bias, plan=plan, **geometry), y[0]) < 1e-6


def test_small_images_and_other_calls_run_dense(calls: list[int]) -> None:
    bank = efx.make_bank("dct2", 32, 32, 3, seed=0)

    def run(x: torch.Tensor, **geometry: Any) -> None:
        y = efx.fixed_conv2d(x, bank, dilation=2, padding=2, **geometry)
        expected = F.conv2d(x, bank.weight(x.dtype), None, geometry.get("stride", 1), 2, 2)
        assert relative_error(y, expected) <= TOLERANCE[x.dtype]

    run(torch.randn(1, 32, 8, 8))  # 16 pixels of a phase, 32 channels
    for dtype in (torch.float64, torch.bfloat16):
        run(torch.randn(1, 32, 16, 16, dtype=dtype))
    run(torch.randn(1, 32, 16, 16).contiguous(memory_format=torch.channels_last))
    run(torch.randn(1, 32, 16, 16), stride=2)
    run(torch.randn(1, 32, 16, 16), plan="dense")
    run(torch.randn(0, 32, 16, 16))
    assert not calls
    run(torch.randn(1, 32, 16, 16))
    run(torch.randn(1, 32, 8, 8), plan="index")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("init", "name"), [("dct2", "index"), ("hadamard", "hadamard"), ("ghaar4_s1", "dense"), ("unchanged", "dense")]
)
def test_plans(init: str, name: str) -> None:
    options = {"weight": torch.randn(64, 64, 3, 3)} if init == "unchanged" else {}
    bank = efx.make_bank(init, 64, 64, 3, seed=0, **options)
    assert make_plan(bank, torch.float32, dilation=(2, 2)).name == name
    assert make_plan(bank, torch.float32, dilation=(2, 2), stride=(2, 2)).name == "dense"
    depthwise = efx.make_bank("dct2", 64, 64, 3, groups=64, seed=0)
    assert make_plan(depthwise, torch.float32, dilation=(2, 2), groups=64).name == "dense"


def test_tracers_see_one_call() -> None:
    conv = efx.FixedConv2d(32, 32, 3, padding=2, dilation=2, init="dct2", seed=0).eval()
    x = torch.randn(2, 32, 16, 16)
    assert conv.kernel_plan.name == "index"
    traced = torch.jit.trace(conv, x)
    program = torch.export.export(conv, (x,))
    assert sum("fixed_conv2d" in str(node.target) for node in program.graph.nodes) == 1
    other = torch.randn(2, 32, 19, 17)
    torch.testing.assert_close(traced(other), conv(other), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(program.module()(x), conv(x), rtol=1e-4, atol=1e-4)
    jacobian = torch.func.vmap(conv)(x[:, None])
    torch.testing.assert_close(jacobian[:, 0], conv(x), rtol=1e-4, atol=1e-4)
