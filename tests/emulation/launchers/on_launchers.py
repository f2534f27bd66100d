"""Tests that test_launchers.py runs in a process of its own, where the CUDA launchers serve CPU tensors."""

from __future__ import annotations

import copy
import os
import re

import pytest
import torch
import torch.nn.functional as F
from emulation.host_compiler import goes_wrong
from emulation.launchers.library import CARDS, Emulated, kernels_in
from support.compare import relative_error
from support.training_step import EXACT, Block, check_same, gradient_error, image, prepared, step
from torch import nn

import explainfix_ext as efx
from explainfix_ext.memory import save_memory
from explainfix_ext.ops.plans.plan import make_plan

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def count(
    y: torch.Tensor,
    blocks: int = 1,
    blocks_y: int = 1,
    threads: int = 32,
    shared_bytes: int = 0,
    bounded: bool = True,
) -> None:
    torch.ops.explainfix_planted.count(y, blocks, blocks_y, threads, shared_bytes, bounded)


def test_a_launch_is_logged_and_does_what_it_says(emulated: Emulated) -> None:
    y = torch.full((70,), -1.0)
    count(y, blocks=3, shared_bytes=100)
    assert torch.equal(y, torch.arange(70.0))
    (launch,) = emulated.launches()
    assert "count_kernel" in launch.kernel
    assert launch[1:] == ((3, 1, 1), (32, 1, 1), 100)


@pytest.mark.parametrize("wrong", [{"threads": 1025}, {"threads": 0}, {"blocks_y": 65536}], ids=str)
def test_a_wrong_configuration_is_refused(emulated: Emulated, wrong: dict[str, int]) -> None:
    y = torch.zeros(1)
    with pytest.raises(RuntimeError, match="CUDA error: invalid configuration argument"):
        count(y, **wrong)
    assert not emulated.launches()


@pytest.mark.parametrize("name", CARDS)
def test_shared_memory_ends_where_the_cards_does(emulated: Emulated, name: str) -> None:
    y, most = torch.zeros(1), CARDS[name].shared_of_block
    emulated.set_card(CARDS[name])
    count(y, shared_bytes=most)
    with pytest.raises(RuntimeError, match="CUDA error: invalid argument"):
        count(y, shared_bytes=most + 1)
    torch.ops.explainfix_planted.bare(y, 48 * 1024, True)
    emulated.set_card(CARDS[name])  # forgets what kernels asked for
    with pytest.raises(RuntimeError, match="CUDA error: invalid argument"):  # more must be asked for
        torch.ops.explainfix_planted.bare(y, 48 * 1024 + 1, True)


def test_a_launch_without_a_device_guard_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no device guard"):
        torch.ops.explainfix_planted.bare(torch.zeros(1), 0, False)


def test_a_card_that_the_binary_has_no_code_for_is_named(emulated: Emulated) -> None:
    emulated.set_card(CARDS["A100"]._replace(major=7, minor=0))
    message = (
        "explainfix_ext was not built for cuda:-1, of compute capability 7.0: build it with TORCH_CUDA_ARCH_LIST=7.0, "
        "or set EXPLAINFIX_EXT=0 to run without kernels"
    )
    with pytest.raises(RuntimeError, match=message):
        efx.fixed_conv2d(torch.randn(1, 2, 5, 5), efx.make_bank("dct2", 4, 2, 3, seed=0))


@pytest.mark.skipif("EXPLAINFIX_EMULATION" not in os.environ, reason="only AddressSanitizer sees it")
def test_a_missing_check_of_bounds_is_seen() -> None:
    assert not goes_wrong(lambda: count(torch.zeros(70), blocks=3))
    assert goes_wrong(lambda: count(torch.zeros(70), blocks=3, bounded=False))


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_depthwise_kernel_runs_on_every_card(
    emulated: Emulated, dtype: torch.dtype, layout: torch.memory_format, name: str
) -> None:
    emulated.set_card(CARDS[name])
    bank = efx.make_bank("dct2", 24, 24, 3, groups=24, seed=0)
    x = torch.randn(2, 24, 9, 11).to(dtype).contiguous(memory_format=layout).requires_grad_()
    assert make_plan(bank, dtype, groups=24).name == "depthwise"
    y = efx.fixed_conv2d(x, bank, padding=1, groups=24)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    kernels = [launch.kernel for launch in emulated.launches()]
    assert len(kernels) == 2
    assert all("depthwise_kernel" in kernel for kernel in kernels)
    x64 = x.detach().double().requires_grad_()
    want = F.conv2d(x64, bank.weight(torch.float64), padding=1, groups=24)
    (want_dx,) = torch.autograd.grad(want, x64, torch.ones_like(want))
    tolerance = 3e-6 if dtype == torch.float32 else 1.2e-2
    assert relative_error(y, want) < tolerance
    assert relative_error(dx, want_dx) < tolerance


def plain_and_saving(mode: str, act: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], ...]:
    """Returns what a step computes by torch's modules, and in a mode of save_memory; without what is zero but for
    roundings, before a BatchNorm."""
    model = prepared(Block(act), x.dtype)
    results = []
    for each in (model, copy.deepcopy(model)):
        if results:
            save_memory(each, mode)
        found = step(each, x)
        results.append({name: t for name, t in found.items() if name not in ("narrow.0.bias", "spatial.0.bias")})
    return tuple(results)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.SiLU(), nn.GELU(), nn.LeakyReLU(0.1)], ids=str)
@pytest.mark.parametrize("mode", EXACT)
def test_saving_memory_changes_no_gradient(
    emulated: Emulated, mode: str, act: nn.Module, layout: torch.memory_format
) -> None:
    x = image(dtype=torch.float32).contiguous(memory_format=layout)
    check_same(*plain_and_saving(mode, act, x), tolerance=1e-5)
    kernels = {name for launch in emulated.launches() for name in re.findall(r"\w+_kernel", launch.kernel)}
    assert kernels & kernels_in("passes")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_int8_is_off_by_little(dtype: torch.dtype) -> None:
    plain, ours = plain_and_saving("int8", nn.ReLU(inplace=True), image(dtype=dtype))
    names = [name for name in plain if not name.startswith("buffer")]
    assert gradient_error(plain, ours, names) < (0.02 if dtype == torch.float32 else 0.1)
