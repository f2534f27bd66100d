"""What operations do with channels, found out by trying: also where they mix by little, or work on Parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.nets import Net, images, made
from torch import Tensor, nn

import explainfix_ext as efx


class Scaled(Net):
    """Net whose middle is a function of the features and of its own numbers."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.of = middle
        self.g, self.halves = nn.Parameter(torch.rand(16)), nn.ParameterList([torch.rand(8), torch.rand(8)])
        self.register_buffer("buffer", torch.rand(16))

    def middle(self, x: Tensor) -> Tensor:
        return self.of(self, x)


def pruned(middle: Callable[[Any, Tensor], Tensor], bn_bias: str = "drop") -> efx.PruneReport:
    """With the filters of four channels of the stem zero, and none else."""
    scores = {"stem": torch.ones(16, 3), "tail": torch.ones(8, 16)}
    scores["stem"][:4] = 0
    model = made(lambda: Scaled(middle))
    return efx.channelprune(model, images(), amount=12 / 176, criterion=scores, bn_bias=bn_bias)


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "sigmoid": lambda m, x: x * torch.sigmoid(m.g)[:, None, None],
    "view": lambda m, x: x * F.softplus(m.g).view(1, -1, 1, 1),
    "clamp": lambda m, x: x * m.g.clamp(0, 1).reshape(-1, 1, 1),
    "one more": lambda m, x: x * (1 + m.g)[:, None, None],
    "square": lambda m, x: x + (m.g * m.g)[:, None, None],
    "expanded": lambda m, x: x * m.g[None, :, None, None].expand_as(x),
    "concatenated": lambda m, x: x * torch.cat([*m.halves])[:, None, None],
    "buffer": lambda m, x: x * m.buffer.exp()[:, None, None],
    "norm": lambda m, x: F.batch_norm(x, m.buffer, m.buffer + 1, m.g.exp()),
    "channels last": lambda m, x: (x.permute(0, 2, 3, 1) * m.g.exp()).permute(0, 3, 1, 2),
}


def quick(names: Iterable[str], *few: str) -> list[Any]:
    return [pytest.param(name, marks=() if name in few else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", quick(FUNCTIONS, "sigmoid", "square", "concatenated", "norm", "channels last"))
def test_functions_of_a_vector_are_followed(name: str) -> None:
    report = pruned(FUNCTIONS[name])
    assert report.plan["layers"]["stem"]["outputs"] == [*range(4, 16)]
    assert report.verify_error is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_constants_before_functions_of_a_vector_are_folded_rightly(name: str) -> None:
    pruned(FUNCTIONS[name], "fold")  # it is verified, too


MIXED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "local_response_norm": lambda m, x: F.local_response_norm(x, 3, alpha=1e-4),
    "local_response_norm of less": lambda m, x: F.local_response_norm(x, 5, alpha=1e-12),
    "normalize": lambda m, x: F.normalize(x, dim=1),
    "cumsum": lambda m, x: x.cumsum(1),
    "einsum by little": lambda m, x: torch.einsum("nchw,cd->ndhw", x, torch.eye(16) + 1e-6),
    "sum": lambda m, x: x / (1 + 1e-6 * x.square().sum(1, keepdim=True)),
    "softmax": lambda m, x: x * m.g.softmax(0)[:, None, None],
    "mul": lambda m, x: x * torch.linspace(0, 1, 16)[:, None, None],
    "written": lambda m, x: x * m.g.sigmoid().view(1, 16, 1, 1),
    "getitem": lambda m, x: x[:, x.mean((0, 2, 3)).topk(16).indices],
}


@pytest.mark.parametrize(
    "name", quick(MIXED, "local_response_norm of less", "einsum by little", "softmax", "written", "getitem")
)
def test_what_mixes_channels_by_little_holds_them(name: str) -> None:
    report = pruned(MIXED[name])
    assert "stem" not in report.plan["layers"]
    assert "stem" in report.protected
