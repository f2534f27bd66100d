"""What a network costs: numbers for the table at the end of training, and where they were taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from explainfix_ext.memory.count import count_step


def learned_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def bytes_kept(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of one training step, the network's own tensors not counted.

    Args:
        loss: runs a training step's forward pass on the network it is given: `model` itself stays as it is.

    Each storage counts once and whole: what a view keeps alive is all of its storage.
    """
    model = copy.deepcopy(model).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in _own_tensors(model)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own backward keeps would keep itself for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = loss(model)  # what is kept lives until the end of this function, so no address is used twice
    nbytes = sum(kept.values())
    del total
    return nbytes


def peak_bytes(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """The most bytes of activations and gradients that are alive at once in one training step.

    Args:
        loss: as `bytes_kept` has it.
    """
    model = copy.deepcopy(model).train()
    model.zero_grad(set_to_none=True)
    return count_step(model, loss).peak


def _own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and the filters of fixed layers, which are neither."""
    from explainfix_ext.nn.fixed_conv2d import FixedConv2d

    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, FixedConv2d):
            packed = module.kernel_plan.packed
            yield from (module.bank.basis, module.bank.steering, *([] if packed is None else [packed]))
