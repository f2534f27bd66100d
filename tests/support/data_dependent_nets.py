"""Networks that torch.fx cannot trace, since what they compute depends on the data; and how tests prune them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import explainfix_ext as efx

from .nets import BY_CHANNEL, Net
from .nets import images as small_images

BY_AUTOGRAD: dict[str, Any] = BY_CHANNEL | {"scope": "layer", "backend": "torch_pruning"}
images = partial(small_images, size=16)


def gone(report: efx.PruneReport, name: str) -> int:
    """Output channels that a layer lost."""
    return report.before[name].out_channels - report.after[name].out_channels


def depends_on_data(x: Tensor) -> bool:
    """torch.fx cannot trace what asks this."""
    return bool(x.isfinite().all())


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)
        self.down: nn.Module = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))) + self.down(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 24), BasicBlock(24, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        if depends_on_data(x):
            x = self.blocks(x)
        return self.head(x.mean((2, 3)))


class Vgg(nn.Module):
    """A channel is several columns of the linear layer after flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.fc, self.head = nn.Linear(12 * 4 * 4, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), 2)
        x = F.adaptive_avg_pool2d(x, 4) if depends_on_data(x) else x
        return self.head(F.relu(self.fc(torch.flatten(x, 1))))


class Mobile(nn.Module):
    """Depthwise layers are all that is spatial; squeeze and excitation ties a gate to their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32)
        self.depthwise, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.project, self.head = nn.Conv2d(32, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.bn2(self.depthwise(F.relu(self.bn1(self.expand(x))))))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))).sigmoid()
        if depends_on_data(gate):
            y = y * gate
        return self.head((x + self.project(y)).mean((2, 3)))


class Mixed(nn.Module):
    """Concatenation, a Parameter for each channel, PReLU, InstanceNorm, a transposed convolution, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1), nn.PReLU(12)
        self.scale, self.norm = nn.Parameter(torch.rand(1, 20, 1, 1) + 0.5), nn.InstanceNorm2d(8, affine=True)
        self.up, self.c = nn.ConvTranspose2d(20, 8, 2, 2), nn.Conv2d(8 + 3, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.act(self.a(x))
        y = torch.cat([y, self.norm(self.b(y))], 1) * self.scale
        y = F.relu(self.c(torch.cat([self.up(y), F.interpolate(x, scale_factor=2)], 1)))
        return {"map": self.head(y), "score": y.mean() if depends_on_data(y) else y.sum()}


class Flipped(Net):
    """Torch-Pruning takes flip for an operation that leaves every channel where it is."""

    def middle(self, x: Tensor) -> Tensor:
        return x.flip(1) if depends_on_data(x) else x


class Shuffled(Net):
    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w) if depends_on_data(x) else x


class Branches(nn.Module):
    """One of two layers runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(8, 4)
        self.bright, self.dark = nn.Conv2d(16, 8, 3), nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bright if x.mean() > 0.25 else self.dark
        return self.head(branch(F.relu(self.stem(x))).mean((2, 3)))


class Frozen(nn.Module):
    """Its features get no gradients: autograd does not see them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.b(F.relu(self.a(x)))
        return self.head(x.mean((2, 3))) if depends_on_data(x) else x
