"""What somebody in Python holds of a forward pass keeps its values, and takes part in the loss as before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from support.training_step import EXACT, check_saving, image, prepared, step
from torch import Tensor, nn

import explainfix_ext as efx


class Net(nn.Module):
    """Has a convolution that can be run again, and a BatchNorm that alone reads its output, as far as code shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.kept: list[Tensor] = []
        self.asked = False

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.features(x)).sin()


class Attribute(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.side = self.features(x)
        return self.norm(self.side).sin() + (self.side.pow(3) if self.asked else 0)


class InAList(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(self.features(x))
        return self.norm(self.kept[-1]).sin()


class Generating(Net):
    def steps(self, x: Tensor) -> Iterator[Tensor]:
        y = self.features(x)
        yield self.norm(y)
        if self.asked:
            yield y

    def forward(self, x: Tensor) -> Tensor:
        return sum(step.sin() for step in self.steps(x))


def loss(net: Net, x: Tensor) -> Tensor:
    net.asked = True
    return net(x).square().mean() + sum(kept.pow(3).mean() for kept in net.kept)


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("holder", [Attribute, InAList, Generating])
def test_what_a_forward_holds(holder: type[Net], mode: str) -> None:
    check_saving(prepared(holder()), image(), mode, loss)


def _patch(net: Net) -> None:
    plain = net.conv.forward
    net.conv.forward = lambda x: net.kept.append(plain(x)) or net.kept[-1]


def _patch_a_parent(net: Net) -> None:
    plain = net.features
    net.features = lambda x: net.kept.append(plain(x)) or net.kept[-1]


def _hook_a_function(net: Net) -> None:
    """autograd's graph alone holds the tensor, by a function that keeps its input."""
    plain = net.features

    def features(x: Tensor) -> Tensor:
        y = plain(x)
        net.kept = [y.square()]
        return y

    net.features = features


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("hold", [_patch, _patch_a_parent, _hook_a_function])
@pytest.mark.parametrize("first", [True, False], ids=["patched before", "patched after"])
def test_what_a_patch_holds(hold: Callable[[Net], None], first: bool, mode: str) -> None:
    plain, ours = prepared(Net()), prepared(Net())
    ours.load_state_dict(plain.state_dict())
    hold(plain)
    if first:
        hold(ours)
    efx.save_memory(ours, mode)
    if not first:
        hold(ours)
    want, got = step(plain, image(), loss), step(ours, image(), loss)
    assert all(torch.allclose(got[name], want[name], rtol=1e-9, atol=1e-11) for name in want)


@pytest.mark.parametrize("mode", EXACT)
def test_what_a_hook_on_a_parent_holds(mode: str) -> None:
    model = prepared(nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1)), nn.BatchNorm2d(8), nn.SiLU()))

    def side_loss(net: nn.Module, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = net[0].register_forward_hook(lambda module, args, y: seen.append(y))
        y = net(x.detach())
        handle.remove()
        return y.square().mean() + seen[0].pow(3).mean()

    plain, ours = copy.deepcopy(model), copy.deepcopy(model)
    efx.save_memory(ours, mode)
    x = image()
    want = torch.autograd.grad(side_loss(plain, x), list(plain.parameters()))
    got = torch.autograd.grad(side_loss(ours, x), list(ours.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(got, want, strict=True))
