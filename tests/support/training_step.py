"""Runs one training step of a small network, and compares its gradients with those of another."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import save_memory
from support.compare import relative_error

Loss = Callable[[nn.Module, Tensor], Tensor]
EXACT = ["exact", "recompute"]  # the modes of save_memory that change no gradient


class Block(nn.Module):
    """Has a bit of everything: a bottleneck, a residual addition, strides, pools, dropout, a transposed convolution."""

    def __init__(self, act: nn.Module | None = None, channels: int = 8) -> None:
        super().__init__()
        c, act = channels, act or nn.ReLU(inplace=True)
        self.stem = nn.Sequential(efx.FixedConv2d(3, c, 3, 1, 1, seed=0, bias=False), nn.BatchNorm2d(c), act)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.narrow = nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), copy.deepcopy(act))
        self.spatial = nn.Sequential(efx.FixedConv2d(c, c, 3, 1, 1, seed=1), nn.BatchNorm2d(c), copy.deepcopy(act))
        self.wide = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c))
        self.act = copy.deepcopy(act)
        self.short = nn.Sequential(
            nn.Conv2d(c, c, 1, 2, bias=False), nn.BatchNorm2d(c), nn.AvgPool2d(2, ceil_mode=True)
        )
        self.up = nn.ConvTranspose2d(c, c, 2, 2)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Conv2d(2 * c, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        y = self.wide(self.spatial(self.narrow(x)))
        y += x
        y = self.act(y)
        small = F.interpolate(self.short(y), scale_factor=2, mode="bilinear")
        big = self.up(self.drop(small))
        return self.head(torch.cat([F.interpolate(y, big.shape[2:]), big], 1))


def image(batch: int = 3, dtype: torch.dtype = torch.float64, size: int = 17) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def prepared(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Gives BatchNorms weights and biases that an error in either would show in."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.to(dtype)


def mean_square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def step(model: nn.Module, x: Tensor, loss: Loss = mean_square) -> dict[str, Tensor]:
    """Runs one step; returns its gradients by name, the buffers, and the loss."""
    torch.manual_seed(1)
    model.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(model, x)
    value.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"buffer {name}": b.double() for name, b in model.named_buffers()}
    return {**found, "x": x.grad, "loss": value.detach()}


def check_same(plain: dict[str, Tensor], ours: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert plain.keys() == ours.keys()
    largest = max(p.double().norm() for name, p in plain.items() if not name.startswith("buffer"))
    for name, want in plain.items():
        if want.double().norm() < 1e-9 * largest:  # zero but for roundings: what is before a BatchNorm
            assert ours[name].double().norm() < 1e-8 * largest, name
        else:
            assert relative_error(ours[name], want) < tolerance, name


def check_saving(
    model: nn.Module, x: Tensor, mode: str, loss: Loss = mean_square, tolerance: float = 1e-10
) -> nn.Module:
    """Runs a step of `model`, plain and in `mode` of save_memory, and compares; returns the model in `mode`."""
    ours = copy.deepcopy(model)
    save_memory(ours, mode)
    check_same(step(model, x, loss), step(ours, x, loss), tolerance)
    return ours


def gradient_error(plain: dict[str, Tensor], ours: dict[str, Tensor], names: list[str]) -> float:
    """Returns the relative error of the named gradients, all taken together as one vector."""
    error = sum((plain[n] - ours[n]).square().sum() for n in names)
    return float((error / sum(plain[n].square().sum() for n in names)).sqrt())
