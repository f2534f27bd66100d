"""flatten: the same network, which lets go of tensors earlier."""

from __future__ import annotations

import copy

import torch
from support.training_step import check_same, check_saving, image, prepared, step
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import flatten, memory_report, save_memory


def test_flatten_lets_go_of_tensors_early() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            convs = [efx.FixedConv2d(i, 8, 3, padding=1, seed=0) for i in (3, 8, 16, 8)]
            layers = [nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(inplace=True)) for conv in convs]
            self.down, self.up = nn.Sequential(*layers[:2]), nn.Sequential(*layers[2:])

        def forward(self, x: Tensor) -> Tensor:
            return self.up(torch.cat([self.down(x)] * 2, 1))

    model = prepared(Skipping())
    flat = flatten(copy.deepcopy(model))
    assert list(flat.state_dict()) == list(model.state_dict())
    check_same(step(copy.deepcopy(model), image()), step(flat, image()))
    check_saving(flat, image(), "recompute")
    save_memory(flat, "recompute")
    save_memory(model, "recompute")
    x = image(4, size=64)
    assert memory_report(flat, x).ours.peak < memory_report(model, x).ours.peak


def test_the_model_stays_as_it_was() -> None:
    """torch.fx runs the forward of what it traces."""

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls, self.seen = nn.BatchNorm2d(3), 0, []
            self.register_buffer("count", torch.zeros(()), persistent=False)
            self.shift = torch.tensor(2.0)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.count += 1
            self.seen.append(x)
            self.last = x
            return self.norm(x) * torch.rand(()) + self.shift + torch.tensor(1.0)

    model = Stateful().train()
    attributes, numbers = set(vars(model)), torch.get_rng_state()
    flat = flatten(model)
    assert (model.calls, model.count.item(), model.seen) == (0, 0, [])
    assert set(vars(model)) == attributes
    assert torch.equal(torch.get_rng_state(), numbers)
    assert flat.norm is model.norm
    assert flat(image(dtype=torch.float32)).shape == (3, 3, 17, 17)
