"""Checks the images and targets of an explanation, and says which number of the model's output is explained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.text import shown
from explainfix_ext.nn.replaceable import REPLACEABLE

from .saliency import default_cost, main_output

Target = Tensor | int


def images_on(model: nn.Module, x: Tensor) -> Tensor:
    """Returns a copy of images, or of signals if the model begins with a Conv1d, on its device: a leaf with gradients.

    Raises:
        TypeError: x is no tensor of floating numbers.
        ValueError: it is not of shape (N, C, H, W), for signals (N, C, L), or holds none.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor of images, got {x.dtype if isinstance(x, Tensor) else shown(x)}")
    first = next((module for module in model.modules() if isinstance(module, REPLACEABLE)), None)
    axes, what = (3, "signals (N, C, L)") if isinstance(first, nn.Conv1d) else (4, "images (N, C, H, W)")
    if x.dim() != axes or not len(x):
        raise ValueError(f"x must be {what}, got shape {list(x.shape)}")
    like = next(model.parameters(), x)
    return x.detach().to(like.device, copy=True).requires_grad_()


def explained_part(output: Any, target: Target) -> tuple[Tensor, Tensor]:
    """Returns the model's main output, and by how much each of its numbers counts: the gradient of the cost.

    Args:
        output: what the model gave: (N, classes, ...), or a dict or sequence that holds it.
        target: classes (N, ...) or one class for all images; or floating, of the output's shape: cost sum(output *
            target).

    Raises:
        ValueError: the target does not fit the output, or the output has no gradient.
    """
    output = main_output(output)
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise ValueError(f"model must give a tensor (N, classes, ...), got {shown(output)}")
    if not output.requires_grad:
        raise ValueError("model gives an output that does not depend on x: is it detached?")
    target = torch.as_tensor(target, device=output.device)
    classes = [len(output), *output.shape[2:]]
    if target.dim() == 0 and not target.is_floating_point():
        target = target.expand(classes)
    fits = target.shape == output.shape if target.is_floating_point() else list(target.shape) == classes
    if not fits or target.dtype == torch.bool:
        raise ValueError(
            f"target must be integer classes of shape {classes}, or floating of the output's shape "
            f"{list(output.shape)}, got {str(target.dtype).removeprefix('torch.')} {list(target.shape)}"
        )
    if not target.is_floating_point() and not bool(((target >= 0) & (target < output.shape[1])).all()):
        raise ValueError(f"target must be classes from 0 to {output.shape[1] - 1}, got {_outside(target, output)}")
    leaf = output.detach().requires_grad_()
    with torch.enable_grad():
        (counts,) = torch.autograd.grad(default_cost(leaf, target), leaf)
    return output, counts


def _outside(target: Tensor, output: Tensor) -> int:
    return int(target[(target < 0) | (target >= output.shape[1])][0])
