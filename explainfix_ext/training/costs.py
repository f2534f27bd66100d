"""Counts what a network costs in training: the parameter and memory columns of the table that `runs` makes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from explainfix_ext.memory.count import count_step
from explainfix_ext.nn.fixed_conv2d import FixedConv2d


def learned_parameters(model: nn.Module) -> int:
    """Returns how many numbers the optimizer trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def bytes_kept(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """Returns the bytes that autograd keeps for the backward pass of one training step.

    Each storage counts once and whole, because a view keeps all of its storage alive. The network's parameters, buffers
    and filters do not count. Its input does, unlike in `explainfix_ext.memory.count`, which counts what the network
    itself makes.

    Args:
        model: stays as it is; the step runs on a copy.
        loss: runs the step's forward pass on the network that it is given, and returns the loss.
    """
    model = copy.deepcopy(model).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in _own_tensors(model)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # not `tensor`: an output kept for its own backward would hold its graph, and that it

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss(model)  # what is kept lives until the end of this function, so no address is used twice
    nbytes = sum(kept.values())
    del total
    return nbytes


def peak_bytes(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """Returns the most bytes of activations and gradients that are alive at once in one training step.

    Args:
        model, loss: as for `bytes_kept`.
    """
    model = copy.deepcopy(model).train()
    model.zero_grad(set_to_none=True)
    return count_step(model, loss).peak


def _own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yields parameters, buffers, and the filters of fixed layers, which are neither."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, FixedConv2d):
            packed = module.kernel_plan.packed
            yield from (module.bank.basis, module.bank.steering, *([] if packed is None else [packed]))
