"""Tests that test_binary.py runs in a process of its own, where torch.cuda has a card that is not there."""

from __future__ import annotations

import copy
import ctypes
import os
import re

import pytest
import torch
from emulation.binary.plugin import address
from emulation.launchers.library import Emulated, kernels_in
from support.compare import relative_error
from support.training_step import check_same, prepared, step
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import save_memory
from explainfix_ext.ops.plans import card_families

LAYOUTS = [torch.contiguous_format, torch.channels_last]
nvcc = pytest.mark.skipif(os.environ["EXPLAINFIX_CUDA_BINARY"] != "nvcc", reason="only nvcc's binary asks the runtime")


class Net(nn.Module):
    """Has a layer for each kernel: dense, depthwise, hadamard, pooling, and what save_memory replaces."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.stem = nn.Sequential(
            efx.FixedConv2d(3, 16, 3, 2, 1, seed=0, init="dct2", bias=False), nn.BatchNorm2d(16), relu
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.hadamard = efx.FixedConv2d(16, 16, 3, padding=1, seed=1, init="hadamard", bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = efx.FixedConv2d(16, 16, 3, padding=1, groups=16, seed=2, init="dct2", bias=False)
        self.after = nn.Sequential(nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 8, 1))
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(self.norm(self.hadamard(x))) + x
        return self.drop(self.after(self.depthwise(x)))


def launched(emulated: Emulated) -> set[str]:
    return {name for launch in emulated.launches() for name in re.findall(r"\w+_kernel", launch.kernel)}


def on_cpu(results: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: result.cpu().double() for name, result in results.items()}


def image(layout: torch.memory_format) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 3, 40, 36).contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("mode", ["off", "exact", "recompute", "int8"])
def test_a_training_step_equals_the_cpus(emulated: Emulated, mode: str, layout: torch.memory_format) -> None:
    net, x = prepared(Net(), torch.float32), image(layout)
    save_memory(net, mode)
    card = copy.deepcopy(net).cuda()
    want = on_cpu(step(net, x))
    got = step(card, x.cuda())
    assert all(t.is_cuda for t in got.values())
    # float32; in int8 a number that lies between two codes may be rounded to either.
    check_same(want, on_cpu(got), 2e-2 if mode == "int8" else 2e-5)
    kernels = launched(emulated)
    assert {"depthwise_kernel", "hadamard_kernel"} <= kernels
    assert bool(kernels & kernels_in("passes")) == (mode != "off")


@pytest.mark.parametrize("mode", ["off", "exact", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_under_autocast_is_near_float32(dtype: torch.dtype, mode: str) -> None:
    net, x = prepared(Net(), torch.float32), image(torch.channels_last)
    want = on_cpu(step(net, x))
    save_memory(net, mode)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype):
            return model(x).float().square().mean()

    got = on_cpu(step(net.cuda(), x.cuda(), loss))
    for name in ("loss", "after.2.weight", "stem.1.weight"):
        assert relative_error(got[name], want[name]) < 0.1, name


@pytest.mark.parametrize("mode", ["off", "exact", "recompute", "int8"])
def test_dropout_trains(mode: str) -> None:
    net = prepared(Net(), torch.float32)
    net.drop.p = 0.5
    save_memory(net, mode)
    assert all(torch.isfinite(t).all() for t in step(net.cuda(), image(torch.channels_last).cuda()).values())


@pytest.mark.parametrize("family", card_families.FAMILIES)
def test_what_is_checked_on_a_new_card_is_right(family: str) -> None:
    card_families.FAMILIES[family]("cuda")


def test_state_moves_between_devices() -> None:
    net = prepared(Net(), torch.float32).eval()
    x = image(torch.channels_last)
    want = net(x)
    card = net.cuda()
    card.load_state_dict({name: t.cuda() for name, t in card.state_dict().items()})
    assert relative_error(card(x.cuda()).cpu(), want) < 1e-5
    assert relative_error(card.cpu()(x), want) < 1e-6


@nvcc
def test_the_error_of_a_launch_is_raised(emulated: Emulated) -> None:
    runtime, kernels = ctypes.CDLL(None), []
    launch_type = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_char_p, *[ctypes.c_void_p] * 2, ctypes.c_size_t])

    @launch_type
    def refuse(name: bytes, *others: object) -> int:
        kernels.append(name.decode())
        return 9

    bank = efx.make_bank("dct2", 16, 16, 3, groups=16, seed=0).to("cuda")
    x = torch.randn(1, 16, 8, 8, device="cuda")
    library = emulated.library
    try:
        runtime.fake_kernels(refuse, address(library.emulated_allow))
        with pytest.raises(RuntimeError, match="invalid configuration argument"):
            efx.fixed_conv2d(x, bank, padding=1, groups=16)
    finally:
        runtime.fake_kernels(address(library.emulated_launch), address(library.emulated_allow))
    assert "depthwise_kernel" in kernels[0]
    assert torch.isfinite(efx.fixed_conv2d(x, bank, padding=1, groups=16)).all()


@nvcc
def test_every_kernel_of_the_binary_has_an_emulation(emulated: Emulated) -> None:
    """By name and by parameters: what a launcher may launch, the emulation can run."""
    names = ctypes.CDLL(None).fake_names
    names.restype = ctypes.c_char_p
    found = names().decode().split()
    assert len(found) > 100
    assert not [name for name in found if not emulated.library.emulated_knows(name.encode())]
    assert not emulated.library.emulated_knows(b"_ZN10explainfix6device12other_kernelEv")
