"""What else autograd does with a graph of our functions: a second backward, checkpoints, hooks on saved tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.training_step import EXACT, Block, check_saving, image, mean_square, prepared
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from explainfix_ext.memory import save_memory


@pytest.mark.parametrize("mode", EXACT)
def test_accumulation_clipping_and_a_second_backward(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        model(x * 0.5).square().mean().backward()
        value = model(x).square().mean()
        value.backward(retain_graph=True)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return value

    check_saving(prepared(Block()), image(), mode, loss)


@pytest.mark.parametrize("mode", EXACT)
def test_checkpoint_around_a_block(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model.stem(x)
        y = checkpoint(model.narrow, y, use_reentrant=False)
        return checkpoint(model.spatial, y, use_reentrant=False).square().mean()

    check_saving(prepared(Block()), image(), mode, loss)


@pytest.mark.parametrize("mode", EXACT)
def test_saved_tensors_may_be_moved_away(mode: str) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return mean_square(model, x)

    check_saving(prepared(Block(nn.SiLU())), image(), mode, loss)


def test_twice_differentiated_is_an_error() -> None:
    model, x = prepared(Block()), image().requires_grad_()
    save_memory(model, "exact")
    (grad,) = torch.autograd.grad(mean_square(model, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


class _Branches(nn.Module):
    """Reads its input several times. What the first run notes on it would change what a second one keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.main = nn.Conv2d(8, 8, 1, 2), nn.Conv2d(8, 8, 3, 2, 1)
        self.pool, self.norm, self.act = nn.MaxPool2d(2, ceil_mode=True), nn.BatchNorm2d(8), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.short(x) + self.main(x))) + self.main(self.pool(x)).mean()


def _of_a_sum(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(model[3], model[0](x) * 1, use_reentrant=False).square().mean()


def _nested(model: nn.Module, x: Tensor) -> Tensor:
    def outer(x: Tensor) -> Tensor:
        return checkpoint(model[3], model[:3](x), use_reentrant=False)

    return checkpoint(outer, x, use_reentrant=False).square().mean()


def _moved_away(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return checkpoint(model[3], model[:3](x), use_reentrant=False).square().mean()


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("loss", [_of_a_sum, _nested, _moved_away])
def test_a_checkpoint_saves_the_same_both_times(loss: Callable[[nn.Module, Tensor], Tensor], mode: str) -> None:
    model = prepared(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), _Branches()))
    check_saving(model, image(), mode, loss)


def test_hooks_on_saved_tensors_may_be_methods_of_c() -> None:
    """Of which torch holds no weak reference."""

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, Tensor.detach):
            return mean_square(model, x)

    check_saving(prepared(Block(nn.SiLU())), image(), "recompute", loss)
