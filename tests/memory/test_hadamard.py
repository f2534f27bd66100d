"""save_memory on networks of hadamard filters: the gradients of every mode, and the bytes that it keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from support.training_step import EXACT, Block, check_same, gradient_error, image, mean_square, prepared, step
from torch import nn

import explainfix_ext as efx
from explainfix_ext.memory import save_memory
from explainfix_ext.memory.count import count_step

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def converted(model: nn.Module, init: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    efx.revert(model)
    efx.convert(model, init, seed=0)
    return prepared(model, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", EXACT)
def test_gradients_are_exact(mode: str, dtype: torch.dtype) -> None:
    """In float32 the kernel runs, and in "recompute" runs again; in float64 the dense plan."""
    model, x = converted(Block(channels=16), "hadamard", dtype), image(dtype=dtype)
    plain = step(copy.deepcopy(model), x)
    save_memory(model, mode)
    assert gradient_error(plain, step(model, x), learned(model)) < TOLERANCE[dtype]


def learned(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def test_int8_is_off_by_a_percent_at_most() -> None:
    model, x = converted(Block(channels=16), "hadamard"), image(dtype=torch.float32)
    plain = step(copy.deepcopy(model), x)
    save_memory(model, "int8")
    ours = step(model, x)
    assert gradient_error(plain, ours, learned(model)) < 0.01


@pytest.mark.parametrize("mode", ["off", *EXACT, "int8"])
def test_no_mode_keeps_more_than_of_an_index_bank(mode: str) -> None:
    kept = []
    for init in ("dct2", "hadamard"):
        model, x = converted(Block(channels=16), init), image(2, torch.float32, 32)
        save_memory(model, mode)
        kept.append(count_step(model, lambda net, x=x: mean_square(net, x)).kept_bytes)
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_resnet18() -> None:
    resnet18 = pytest.importorskip("torchvision").models.resnet18
    torch.manual_seed(0)
    model, x = converted(resnet18(num_classes=4), "hadamard", torch.float64), image(2, size=64)
    plain = step(copy.deepcopy(model), x)
    bytes_of = {"off": count_step(copy.deepcopy(model), lambda net: mean_square(net, x)).kept_bytes}
    for mode in EXACT:
        ours = copy.deepcopy(model)
        save_memory(ours, mode)
        check_same(plain, step(ours, x), 1e-10)
        bytes_of[mode] = count_step(ours, lambda net: mean_square(net, x)).kept_bytes
    assert bytes_of["recompute"] < bytes_of["exact"] < bytes_of["off"]
