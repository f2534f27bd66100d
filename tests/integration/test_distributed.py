"""A converted model under DistributedDataParallel: two processes, gloo."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

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


def step(rank: int, port: int, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = make_model().eval()  # batch statistics would differ from those of the whole batch
    wrapped = nn.parallel.DistributedDataParallel(model)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    loss_of(wrapped, x[2 * rank : 2 * rank + 2]).backward()
    marks: list = [None, None]
    dist.all_gather_object(marks, model[0].bank.fingerprint())
    results[rank] = ({n: p.grad for n, p in model.named_parameters()}, marks[0] == marks[1])
    dist.destroy_process_group()


def test_two_process_step_equals_one_process() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(step, args=(port, results), nprocs=2)
        model = make_model().eval()
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        loss_of(model, x).backward()
        assert "0.weight" not in dict(model.named_parameters())
        for rank in (0, 1):
            grads, same_banks = results[rank]
            assert same_banks
            for name, p in model.named_parameters():
                torch.testing.assert_close(grads[name], p.grad, rtol=1e-4, atol=1e-7)
