"""A gradient is overwritten only if nobody else can see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.training_step import EXACT, Block, check_saving, image, mean_square, prepared
from torch import Tensor, nn

from explainfix_ext.memory.ownership import once_differentiable, own


@pytest.mark.parametrize("mode", EXACT)
def test_gradients_that_others_hold_are_not_overwritten(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        def keep(module: nn.Module, args: tuple, y: Tensor) -> None:
            y.register_hook(lambda grad: held.append((grad, grad.clone())))

        hooks = [m.register_forward_hook(keep) for m in model.modules() if not list(m.children())]
        value = mean_square(model, x)
        for hook in hooks:
            hook.remove()
        return value

    held: list[tuple[Tensor, Tensor]] = []
    check_saving(prepared(Block()), image(), mode, loss)
    assert len(held) > 20
    assert all(torch.equal(grad, copied) for grad, copied in held)


def _overwrites(hold: Callable[[Tensor], object] = lambda grad: None, branches: int = 1) -> list[bool]:
    """Runs backward functions that call `own` while `hold(grad)` is alive: does it return the gradient itself?"""

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            held = hold(grad)
            found.append(grad.data_ptr() == own(grad, torch.contiguous_format).data_ptr())
            del held
            return grad

    found: list[bool] = []
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = sum(Probe.apply(x * (i + 1)) for i in range(branches))
    (y * 2).square().sum().backward()
    return found


def test_a_gradient_of_ours_alone_is_overwritten() -> None:
    assert _overwrites() == [True]


@pytest.mark.parametrize("hold", [lambda grad: [grad], Tensor.detach, Tensor.flatten, lambda grad: grad[:1]])
def test_what_somebody_else_sees_is_left_alone(hold: Callable[[Tensor], object]) -> None:
    assert _overwrites(hold) == [False]


def test_both_sides_of_an_addition_get_the_same_gradient() -> None:
    """The first may not overwrite what autograd has for the second."""
    assert not _overwrites(branches=2)[0]


def test_the_other_layout_is_new_memory() -> None:
    grad = torch.randn(2, 3, 4, 4)
    ours = own(grad, torch.channels_last)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert ours.shape == grad.shape


def test_a_torch_without_these_counters_overwrites_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    assert _overwrites() == [False]
