"""A converted model under DistributedDataParallel: two processes, gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.two_processes import run_two
from torch import Tensor, nn

import explainfix_ext as efx

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    efx.convert(model, "dct2", seed=0)
    return model


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def step(rank: int, folder: Path) -> None:
    """A backward pass on half of the images; leaves the gradients and whether both processes have the same bank."""
    model = make_model().eval()  # batch statistics would differ from those of the whole batch
    wrapped = nn.parallel.DistributedDataParallel(model)
    loss_of(wrapped, images()[2 * rank : 2 * rank + 2]).backward()
    marks: list = [None, None]
    dist.all_gather_object(marks, model[0].bank.fingerprint())
    torch.save(({n: p.grad for n, p in model.named_parameters()}, marks[0] == marks[1]), folder / f"{rank}.pt")


def test_two_process_step_equals_one_process(tmp_path: Path) -> None:
    run_two(step, tmp_path)
    model = make_model().eval()
    loss_of(model, images()).backward()
    assert "0.weight" not in dict(model.named_parameters())
    for rank in (0, 1):
        grads, same_banks = torch.load(tmp_path / f"{rank}.pt")
        assert same_banks
        for name, p in model.named_parameters():
            torch.testing.assert_close(grads[name], p.grad, rtol=1e-4, atol=1e-7)
