"""What else autograd does with a graph of our functions: a second backward, checkpoints, hooks on saved tensors."""

from __future__ import annotations

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
