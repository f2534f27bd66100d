"""Sums and softmax over a stack of branches: the channels of all branches go together, position by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import BY_CHANNEL, Net, conv, images, made
from torch import Tensor, nn

import explainfix_ext as efx


class Selective(Net):
    """Two branches, weighed for each channel by a softmax over both, as in SKNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(16, 16), conv(16, 16, 5)
        self.down, self.up = conv(16, 4, 1), conv(4, 32, 1)

    def weights(self, x: Tensor) -> Tensor:
        x = self.up(F.relu(self.down(x.sum(1).mean((2, 3), keepdim=True))))
        return x.view(x.shape[0], 2, x.shape[1] // 2, 1, 1).softmax(1)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.stack([self.a(x), self.b(x)], 1)
        return (x * self.weights(x)).sum(dim=1)


class Split(Selective):
    """Halves of one convolution, as in ResNeSt."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(16, 32)

    def middle(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x.reshape(x.shape[0], 2, x.shape[1] // 2, x.shape[2], x.shape[3])
        return (x * self.weights(x)).sum(dim=1)


class Largest(Selective):
    def middle(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x), self.b(x)], 1).amax(1)


def masked(model: Any, layers: dict[str, Any]) -> nn.Module:
    """Returns the model in which removed channels are not written, and not read where they are constants."""
    for name, cut in layers.items():
        for axis, side in enumerate(("outputs", "inputs")):
            if cut[side] is not None and not (axis == 0 and name == "up"):
                weight = model.get_submodule(name).weight.data.movedim(axis, 0)
                weight[[k for k in range(len(weight)) if k not in {*cut[side]}]] = 0
    return model


@pytest.mark.parametrize("make", [Selective, Split, Largest])
def test_branches_of_a_stack_go_together(make: type[nn.Module]) -> None:
    report = efx.channelprune(made(make), images(), amount=0.9, **BY_CHANNEL | {"criterion": "random"})
    layers = report.plan["layers"]
    kept = layers["tail"]["inputs"]
    assert len(kept) < 16
    if make is Split:
        assert layers["a"]["outputs"] == [*kept, *(16 + k for k in kept)]
    else:
        assert layers["a"]["outputs"] == layers["b"]["outputs"] == kept
    if make is not Largest:
        assert layers["up"]["outputs"] == [*kept, *(16 + k for k in kept)]
        assert layers["down"]["inputs"] == kept
    assert torch.allclose(report.model(images()), masked(made(make), layers)(images()), atol=1e-5)


def test_a_sum_over_all_branches_and_channels_holds_them() -> None:
    class Mixed(Selective):
        def middle(self, x: Tensor) -> Tensor:
            return x * torch.stack([self.a(x), self.b(x)], 1).sum((1, 2), keepdim=True)[:, 0]

    report = efx.channelprune(made(Mixed), images(), amount=0.6, **BY_CHANNEL)
    assert "sum" in report.protected["a"]
