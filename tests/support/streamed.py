"""Networks with a local body, and the comparison of a streamed one with the whole image, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import explainfix_ext as efx
from support.compare import relative_error
from support.training_step import prepared

TOLERANCE = 1e-11


class Net(nn.Module):
    """Has a local body, and a head that looks at all of it; `body` is what a test puts in."""

    def __init__(self, *body: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def fixed(i: int, o: int, kernel: int = 3, **geometry: int) -> nn.Module:
    return efx.FixedConv2d(i, o, kernel, seed=0, **geometry)


class Skip(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def strided() -> nn.Module:
    return Net(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        Skip(fixed(8, 8, padding=1), nn.BatchNorm2d(8), nn.SiLU()), nn.Conv2d(8, 8, 1, 2),
    )  # fmt: skip


def unpadded() -> nn.Module:
    return Net(nn.Conv2d(3, 8, 5), nn.GELU(), nn.AvgPool2d(3, 3, ceil_mode=True), fixed(8, 8, dilation=2))


def by_axis() -> nn.Module:
    return Net(nn.Conv2d(3, 8, (1, 5), (1, 3)), nn.Conv2d(8, 8, (7, 1), (2, 1), (3, 0)), nn.Hardswish())


def images(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def calibrated(make: Callable[[], nn.Module]) -> nn.Module:
    """Makes a network whose BatchNorms have statistics, and are in eval mode; the rest is as `make` has it."""
    torch.manual_seed(0)
    model = prepared(make())
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            norm.eval()
    return model


def step(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Returns the output, and the gradients for the image and for the parameters."""
    model.zero_grad()
    x = image.clone().requires_grad_()
    y = model(x)
    (y.square().mean() + y.sin().mean()).backward()
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in model.named_parameters()}}


def check_same(model: nn.Module, plain: nn.Module, image: Tensor) -> None:
    expected = step(plain, image)
    for name, got in step(model, image).items():
        assert relative_error(got, expected[name]) < TOLERANCE, name
