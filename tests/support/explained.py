"""Networks and data for tests that explain filters, and their gradients by plain autograd to compare with."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import explainfix_ext as efx

Batch = tuple[Tensor, Tensor]


class Geometry(nn.Module):
    """A layer of each kind that F.unfold must follow: stride, "same", groups, dilation, reflection, in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, (3, 5), padding="same", groups=4, dilation=(2, 1))
        self.c = nn.Conv2d(8, 6, 4, padding=2, padding_mode="reflect", bias=False)
        self.mix, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.d = nn.Conv2d(6, 6, 3, padding=(0, 1), groups=6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.b(F.relu_(self.a(x))))
        x = F.relu(self.norm(self.mix(self.c(x))), inplace=True)
        return self.head(self.d(x).mean((2, 3)))


class Shapes(nn.Module):
    """Kernels of every shape, grouped and depthwise; activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Conv2d(3, 8, 3, padding=1)
        self.row = nn.Conv2d(8, 8, (1, 5), padding="same")
        self.wide = nn.Conv2d(8, 6, (3, 4), groups=2, stride=2)
        self.deep = nn.Conv2d(6, 6, 5, groups=6, padding=2)
        self.mix, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.even = nn.Conv2d(6, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.row(F.relu_(self.square(x))))
        x = self.norm(self.mix(self.deep(F.relu_(self.wide(x)))))
        return self.even(F.relu_(x)).mean((2, 3))


# kind -> options of `convert`. Any other kind but "learned" and "frozen" is the name of an initialisation.
KINDS: dict[str, dict[str, Any]] = {
    "fixed": {"init": "dct2"},
    "coefficients": {"init": "dct2", "learn_coeff": True},
    "mixed": {"init": "ghaar4_ms", "learn_coeff": True},
    "pointwise": {"init": "dct2", "pointwise": True},
    "compressed": {"init": "unchanged", "energy": 0.7},
}


def make(kind: str, network: type[nn.Module], **options: Any) -> nn.Module:
    """The network in float64, its filters of that kind; `options` go to `convert`."""
    torch.manual_seed(0)
    model = network()
    if kind == "frozen":
        model.requires_grad_(False)
    elif kind != "learned":
        efx.convert(model, **(KINDS.get(kind, {"init": kind}) | options))
    return model.double()


def batches(*sizes: int) -> list[Batch]:
    """Random images (n, 3, 12, 12) with classes below 4, always the same ones."""
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 12, 12, generator=g).double(), torch.randint(0, 4, (n,), generator=g)) for n in sizes]


def singles(data: list[Batch]) -> list[Batch]:
    """The same samples, one in each batch."""
    return [(x[i : i + 1], y[i : i + 1]) for x, y in data for i in range(len(x))]


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}


def weight_gradients(model: nn.Module, data: list[Batch]) -> dict[str, list[Tensor]]:
    """Layer -> dc/dW of each batch, by autograd through composed weights; c is the sum of the true classes' logits."""
    assert all(getattr(m, "pointwise", None) is None for m in model.modules()), "revert would fold it into the weight"
    plain = efx.revert(copy.deepcopy(model)).eval().requires_grad_(True)
    layers = convolutions(plain)
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    for x, y in data:
        cost = plain(x).gather(1, y[:, None]).sum()
        gradients = torch.autograd.grad(cost, [m.weight for m in layers.values()])
        for name, gradient in zip(layers, gradients, strict=True):
            found[name].append(gradient)
    return found
