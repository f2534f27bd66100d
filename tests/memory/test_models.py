"""save_memory on the networks of the benchmark: gradients equal the unmodified network's in float64."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from support.bench_networks import MEMORY_MODELS
from support.training_step import Block, check_same, gradient_error, image, prepared, step
from support.two_processes import run_two
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.commands.benchmarks.models import freeze_spatial
from explainfix_ext.memory import flatten, save_memory
from explainfix_ext.training.models import logits_of

pytest.importorskip("torchvision")
# CI has the smallest of each kind; with -m "" all of them run.
FAST = ("resnet18", "efficientnet_b0")
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MEMORY_MODELS]


def converted(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = freeze_spatial(MEMORY_MODELS[name]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        efx.convert(model, "dct2", seed=0)
    return prepared(model.train())


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return logits_of(model(x)).square().mean()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_statistics_are_exact(name: str) -> None:
    model, x = converted(name), images()
    plain = step(copy.deepcopy(model), x, loss)
    for mode in ("exact", "recompute"):
        ours = copy.deepcopy(model)
        changes = save_memory(ours, mode)
        check_same(plain, step(ours, x, loss), 1e-10)
        assert len(changes.changed) > 40
    flat = flatten(copy.deepcopy(model))
    save_memory(flat, "recompute")
    check_same(plain, step(flat, x, loss), 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_int8_is_off_by_a_percent_at_most(name: str) -> None:
    """All gradients together."""
    model, x = converted(name), images()
    plain = step(copy.deepcopy(model), x, loss)
    save_memory(model, "int8")
    ours = step(model, x, loss)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert 0 < gradient_error(plain, ours, names) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "recompute"])
def test_learned_networks_are_exact_too(mode: str) -> None:
    model, x = prepared(MEMORY_MODELS["resnet50"]().train()), images()
    plain = step(copy.deepcopy(model), x, loss)
    save_memory(model, mode)
    check_same(plain, step(model, x, loss), 1e-10)


@pytest.mark.parametrize("name", ["resnet26d", "mobilenetv3_small_100"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name)
    efx.convert(model, "dct2", seed=0)
    model, x = prepared(model.train()), images()
    plain = step(copy.deepcopy(model), x)
    for mode in ("exact", "recompute"):
        ours = copy.deepcopy(model)
        save_memory(ours, mode)
        check_same(plain, step(ours, x), 1e-9)


def _train(rank: int, folder: Path, mode: str) -> None:
    torch.manual_seed(0)
    model = prepared(Block())
    save_memory(model, mode)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for i in range(3):
        optimizer.zero_grad()
        torch.manual_seed(i)
        wrapped(image(4)[rank::2]).square().mean().backward()
        optimizer.step()
    if rank == 0:
        torch.save(model.state_dict(), folder / "state.pt")


def test_two_ddp_processes(tmp_path: Path) -> None:
    states = []
    for mode in ("off", "recompute"):
        folder = tmp_path / mode
        folder.mkdir()
        run_two(_train, folder, mode)
        states.append(torch.load(folder / "state.pt", weights_only=False))
    for name, want in states[0].items():
        if want.is_floating_point():
            assert torch.allclose(states[1][name], want, rtol=1e-9, atol=1e-11), name


@pytest.mark.cuda
@pytest.mark.parametrize("name", FAST)
def test_gradients_are_exact_cuda(name: str) -> None:
    model, x = converted(name).cuda(), images().cuda()
    plain = step(copy.deepcopy(model), x, loss)
    for mode in ("exact", "recompute"):
        ours = copy.deepcopy(model)
        save_memory(ours, mode)
        check_same(plain, step(ours, x, loss), 1e-9)
