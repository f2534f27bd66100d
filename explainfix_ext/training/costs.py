"""Counts what a network costs in training, for results.json: learned parameters and memory."""

from __future__ import annotations

import copy

from torch import nn

from explainfix_ext.memory.count import Loss, count_step, saved_bytes


def learned_parameters(model: nn.Module) -> int:
    """Returns how many numbers the optimizer trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def bytes_kept(model: nn.Module, loss: Loss) -> int:
    """Counts the bytes that autograd keeps for the backward pass of one training step, as `saved_bytes` has it.

    Args:
        model: the network, of which a copy runs.
        loss: runs a training step's forward pass on the network it is given.
    """
    return saved_bytes(copy.deepcopy(model).train(), loss)


def peak_bytes(model: nn.Module, loss: Loss) -> int:
    """Counts the most bytes of activations and gradients that are alive at once in one training step.

    Args:
        model: the network, of which a copy runs.
        loss: runs a training step's forward pass on the network it is given.
    """
    model = copy.deepcopy(model).train()
    model.zero_grad(set_to_none=True)
    return count_step(model, loss).peak
