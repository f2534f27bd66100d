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


# --- ranks that start with other filters ----------------------------------------------------------------------------


WAYS = {
    "dct2": {},
    "unchanged": {},
    "hadamard": {},
    "psine": {"learn_coeff": True, "shared_basis": 3},
}


def net_of(init: str, seed: int) -> nn.Module:
    """Without buffers, so that DDP itself sends nothing in a forward pass."""
    torch.manual_seed(seed)  # "unchanged" keeps these weights
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    efx.convert(model, init, seed=seed, **WAYS[init])
    return model


def follow(rank: int, folder: Path) -> None:
    """Asserts that both ranks compute with rank 0's filters, which are sent in the first step alone."""
    x, send = images(), dist.broadcast_object_list
    for init in WAYS:
        wrapped = nn.parallel.DistributedDataParallel(net_of(init, rank), broadcast_buffers=False)
        if rank == 0:  # evaluates alone: must not wait for the other
            with torch.no_grad():
                wrapped.eval()(x)
        wrapped.train()(x).sum().backward()
        dist.broadcast_object_list = None
        assert torch.equal(wrapped(x), net_of(init, 0)(x)), init
        dist.broadcast_object_list = send
    compiled = torch.compile(net_of("dct2", rank), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(nn.parallel.DistributedDataParallel(compiled)(x), net_of("dct2", 0)(x))

    model = nn.Sequential(nn.Conv2d(3, 8, 3 + 2 * rank), nn.Conv2d(8, 4, 1))  # 5x5 on rank 1: Parameters do not tell
    efx.convert(model, "dct2")
    wrapped, said = nn.parallel.DistributedDataParallel(model), ""
    try:
        wrapped(x)
    except RuntimeError as error:
        said = str(error)
    assert said.startswith("0: rank 0 has filters that do not fit this rank's layer: " * rank)
    assert "\n" not in said


def test_all_ranks_have_the_filters_of_rank_0(tmp_path: Path) -> None:
    run_two(follow, tmp_path)
