"""Banks of any number of functions, more than a kernel has pixels too: every plan gives what float64 gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.filters import registry
from explainfix_ext.ops import binaries
from explainfix_ext.ops.binaries import ISAS, set_cpu_isa
from explainfix_ext.ops.plans.plan import make_plan

COUNTS = [1, 2, 4, 8, 9, 10, 12, 25, 26, 50, 100, 254, 255]
BASES = ["random", "duplicated DCT", "DCT and negatives", "rank 2"]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


def basis_of(kind: str, functions: int, kernel: int) -> Tensor:
    random = torch.randn(functions, kernel, kernel, dtype=torch.float64)
    if kind == "random":
        return random
    if kind == "rank 2":
        return torch.einsum("lr,rij->lij", torch.randn(functions, 2, dtype=torch.float64), random[[0, -1]])
    dct = efx.dct_basis((kernel, kernel))[torch.randint(kernel**2, (functions,))]
    return dct if kind == "duplicated DCT" else dct * torch.randint(2, (functions, 1, 1)).mul(2).sub(1)


def check(bank: efx.FilterBank, plan: str, stride: int, dtype: torch.dtype, groups: int) -> None:
    x = torch.randn(2, bank.shape[1] * groups, 13, 17).to(dtype).requires_grad_()
    exact, geometry = x.detach().double().requires_grad_(), {"stride": stride, "padding": 1, "groups": groups}
    y = efx.fixed_conv2d(x, bank, plan=plan, **geometry)
    want = F.conv2d(exact, bank.weight(torch.float64), **geometry)
    grad = torch.randn_like(y)
    (dx,), (want_dx,) = torch.autograd.grad(y, x, grad), torch.autograd.grad(want, exact, grad.double())
    for name, got, expected in (("y", y.detach(), want.detach()), ("dx", dx, want_dx)):
        error = relative_error(got, expected)
        case = f"{name} of {bank.rank} functions {list(bank.shape)}, {plan}, stride {stride}, {dtype}"
        assert error < TOLERANCE[dtype], f"{case}: {error:.1e}"


def check_all_plans(kind: str, functions: int, kernel: int) -> None:
    torch.manual_seed(functions)
    basis = basis_of(kind, functions, kernel)
    index = torch.randint(functions, (9, 5), dtype=torch.uint8)
    banks = {
        "index": (efx.FilterBank(basis, index=index.masked_fill(torch.rand(9, 5) < 0.2, 255)), 1),
        "low_rank": (efx.FilterBank(basis, coeff=torch.randn(9, 5, functions)), 1),
        "depthwise": (efx.FilterBank(basis, index=index[:, :1].clone()), 9),
    }
    for plan, (bank, groups) in banks.items():
        for stride in (1, 2):
            for dtype in TOLERANCE:
                for force in ("auto", plan):
                    check(bank, force, stride, dtype, groups)


@pytest.mark.parametrize("kind", BASES)
def test_every_plan_equals_float64(kind: str) -> None:
    for functions in (1, 10, 26, 255):
        check_all_plans(kind, functions, 3)
    check_all_plans(kind, 26, 5)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_every_plan_equals_float64_on_every_instruction_set(isa: str) -> None:
    try:
        if set_cpu_isa(isa) != isa:
            pytest.skip("not on this machine")
        for kernel in (3, 5, 7):
            for kind in BASES:
                for functions in COUNTS:
                    check_all_plans(kind, functions, kernel)
    finally:
        set_cpu_isa(None)


@pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels")
def test_kernels_are_what_ran() -> None:
    bank = efx.FilterBank(torch.randn(255, 3, 3), index=torch.arange(255, dtype=torch.uint8).view(51, 5))
    assert make_plan(bank, torch.float32).name == "index"
    assert make_plan(bank, torch.float32, stride=(2, 2), force="index").name == "index"


def test_duplicated_functions_are_no_dct_for_the_planner() -> None:
    """The low-rank kernel is fast for DCT functions that differ; auto picked it for these in bfloat16, stride 2."""
    twice = efx.dct_basis((3, 3))[[0, 0, 1]]
    bank = efx.FilterBank(twice, coeff=torch.randn(64, 64, 3))
    assert make_plan(bank, torch.bfloat16, stride=(2, 2)).name == "dense"


@pytest.mark.parametrize("functions", [12, 255])
def test_a_registered_initialisation_and_its_checkpoint(functions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @registry.register("many", "many random functions")
    def many(layer: registry.Layer) -> efx.FilterBank:
        basis = torch.from_numpy(layer.stream("basis").normal(functions, 3, 3))
        return layer.bank(basis, layer.stream("index").integers(0, functions, layer.filters))

    conv, other = efx.FixedConv2d(16, 32, 3, init="many", seed=0), efx.FixedConv2d(16, 32, 3, seed=1)
    other.load_state_dict(conv.state_dict())
    x = torch.randn(1, 16, 9, 9)
    for layer in (conv, other):
        assert layer.bank.rank == functions
        assert relative_error(layer(x), F.conv2d(x.double(), conv.weight.double(), conv.bias.double())) < 2e-6
