"""This module opens gates: numbers that a network multiplies its values by, and that are near zero or saturate it.

A LayerScale of 1e-6 or a norm whose weight is initialised to zero hides what comes before: whether the right channels
were removed there does not show in the output, until training opens the gate. The check of a pruned model opens it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.prune.trace.kinds import MIXING, NORMS

_CLOSED, _LARGE = 0.1, 1.5
_HIDDEN, _SEEN = 1e-3, 0.1  # weights of a layer whose largest is below the one are scaled to the other


@torch.no_grad()
def open_gates_(model: nn.Module, seed: int) -> None:
    """Gives numbers that stand for themselves or for a channel each, such as scales and biases, magnitudes near 1.

    Those below 0.1 are drawn anew from [0.5, 1.5], and those beyond 1.5 are clipped. Weights of layers stay, unless
    all are near zero; so do the statistics of norms.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for module in model.modules():
        for name, tensor in _numbers(module):
            if id(tensor) in done or not tensor.is_floating_point():
                continue
            done.add(id(tensor))
            if isinstance(module, MIXING) and name != "bias":
                if not isinstance(module, FixedConv):
                    _scale_(tensor)
            elif sum(size > 1 for size in tensor.shape) <= 1:
                drawn = (torch.rand(tensor.shape, generator=generator) + 0.5).to(tensor)
                tensor.copy_(torch.where(tensor.abs() < _CLOSED, drawn, tensor.clamp(-_LARGE, _LARGE)))


def _numbers(module: nn.Module) -> list[tuple[str, Tensor]]:
    own: list[Any] = [*module.named_parameters(recurse=False)]
    if not isinstance(module, (*MIXING, *NORMS)):  # a buffer of the model's own may be a gate
        own += module.named_buffers(recurse=False)
    return own


def _scale_(weight: Tensor) -> None:
    largest = weight.abs().amax() if weight.numel() else weight.new_zeros(())
    if 0 < largest < _HIDDEN:
        weight.mul_(_SEEN / largest)
