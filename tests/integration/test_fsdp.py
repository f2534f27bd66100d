"""A converted model under FSDP2 (fully_shard): two processes, gloo, against one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.compare import relative_error
from support.two_processes import run_two
from torch import Tensor, nn

import explainfix_ext as efx

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")

WAYS = {"fixed": {}, "learned mix": {"learn_coeff": True}, "learned 1x1": {"pointwise": True}}
STEPS = 3


def make_model(way: str, seed: int = 0) -> nn.Module:
    """Full and depthwise, index and coefficient banks; GroupNorm, so that half a batch is normalised like a whole."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    efx.convert(model, {"0": "dct2", "4": "ghaar4_s1"}, seed=seed, **WAYS[way])
    return model


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def batch(step: int) -> tuple[Tensor, Tensor]:
    data = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 12, 12, generator=data), torch.randint(5, (8,), generator=data)


def train(model: nn.Module, share: slice = slice(None)) -> Tensor:
    """STEPS steps on a share of each batch, in the model's dtype -> losses."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for step in range(STEPS):
        x, y = batch(step)
        loss = nn.functional.cross_entropy(model(x[share].to(model[3].weight.dtype)), y[share])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def train_sharded(rank: int, folder: Path, way: str) -> None:
    """Trains, leaves losses and the whole state_dict in `folder`, and loads that into a model made on meta."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    torch.manual_seed(0)
    model = sharded(make_model(way))
    losses = train(model, slice(rank, None, 2)) / 2
    dist.all_reduce(losses)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    with torch.device("meta"):
        other = make_model(way, seed=1)
    other = sharded(other).to_empty(device="cpu")
    whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(other, dict(state), options=whole)  # empty on rank 1
    x = batch(STEPS)[0]
    with torch.no_grad():
        assert torch.equal(other(x), model(x)), "rank 0's state, sent to all ranks"
    local = sum(p.to_local().numel() for p in model.parameters())
    everything = sum(p.numel() for p in model.parameters())
    assert local < 0.7 * everything, "parameters are sharded"
    if rank == 0:
        torch.save({"losses": losses, "model": state}, folder / "trained.pt")


@pytest.mark.parametrize("way", ["fixed", *(pytest.param(way, marks=pytest.mark.slow) for way in list(WAYS)[1:])])
def test_sharded_training_equals_plain_training(way: str, tmp_path: Path) -> None:
    run_two(train_sharded, tmp_path, way)
    trained = torch.load(tmp_path / "trained.pt")
    torch.manual_seed(0)
    model = make_model(way).double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = train(model)
    assert relative_error(trained["losses"], losses) < 1e-6
    loaded = make_model(way, seed=2)
    loaded.load_state_dict(trained["model"])
    for (name, got), want in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert relative_error(got, want) < 1e-5, name
        assert relative_error(before[name], want) > 1e-3, f"{name} did not learn"
    for layer in (0, 4):
        assert relative_error(loaded[layer].weight, model[layer].weight) < 1e-5
