"""This module finds which channels of a Coupling are read by a layer, and which only zero filters write.

It is to the Torch-Pruning backend what cut/liveness.py is to torch.fx. Coupled channels form a group. Within a group,
each node of Torch-Pruning's graph that computes with the channels is in one of three states per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext.prune.trace.inputs import copied
from explainfix_ext.prune.trace.kinds import MIXING

from .coupling import Coupling, Entry, Group, Node, is_depthwise

# What a value is made of: Parameters alone, zero filters alone, or the model's input.
GIVEN, ZERO, LIVE = 0, 1, 2
_NONE = torch.empty(0, dtype=torch.long)


def read_and_zero(coupling: Coupling, peaks: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Returns the ids of channels that some layer reads, and of those that some layer writes with zero filters alone.

    Args:
        coupling: what Torch-Pruning found.
        peaks: layer -> (I,) the largest magnitude that it reads: a constant is read unless it is zero. None: constants
            are dropped, so none is read.
    """
    read, zero = [_NONE], [_NONE]
    for group in coupling.groups:
        states = _states(coupling, group, annul=peaks is None)
        for node, (name, columns, places) in group.readers.items():
            wanted = _before(node, states, group.size)[places] == LIVE
            if peaks is not None:
                wanted |= peaks[name][columns] != 0
            read.append(group.start + places[wanted & coupling.nonzero[name].any(0)[columns]])
        for name, rows, places in group.writers.values():
            zero.append(group.start + places[~coupling.nonzero[name].any(1)[rows]])
    return torch.cat(read), torch.cat(zero)


def _states(coupling: Coupling, group: Group, annul: bool) -> dict[Node, Tensor]:
    """Returns node -> (size,) GIVEN, ZERO or LIVE, in the order of computation.

    Args:
        annul: a product is ZERO where one factor is. Only if constants are dropped: kept ones may be other than zero.
    """
    states: dict[Node, Tensor] = {}
    waiting = list(group.nodes)
    while waiting:
        known = [n for n in waiting if _mixes(n, group) or all(i in states or i not in group.nodes for i in n.inputs)]
        for node in known:
            states[node] = _state(coupling, group, node, states, annul)
        if not known:  # a layer that reads itself: nothing is known of it
            states |= {node: torch.full((group.size,), LIVE) for node in waiting}
        waiting = [node for node in waiting if node not in states]
    return states


def _state(coupling: Coupling, group: Group, node: Node, states: dict[Node, Tensor], annul: bool) -> Tensor:
    """Returns the state of one node, (size,), given those of the nodes that it reads."""
    if node in group.writers:
        name, rows, places = group.writers[node]
        live = torch.full((group.size,), LIVE)
        before = live if _mixes(node, group) else _before(node, states, group.size)
        written = torch.where(coupling.nonzero[name].any(1)[rows], before[places], ZERO)
        return torch.zeros_like(live).scatter_reduce_(0, places, written, "amax")
    from_input = isinstance(node.module, Entry)
    if not from_input and all(i in states and not bool(states[i].any()) for i in node.inputs):
        return torch.full((group.size,), GIVEN)
    return _before(node, states, group.size, annul and coupling.is_product(node))


def _before(node: Node, states: dict[Node, Tensor], size: int, product: bool = False) -> Tensor:
    """Returns what a node reads, (size,) ZERO or LIVE. GIVEN operands do not count; unknown ones are LIVE."""
    known = [states[i] for i in node.inputs if i in states and bool(states[i].any())]
    if not known:
        return torch.full((size,), LIVE)
    values = torch.stack(known)
    zero = (values == ZERO).any(0) if product else values.amax(0) == ZERO
    return torch.where(zero, ZERO, LIVE)


def _mixes(node: Node, group: Group) -> bool:
    """Says whether a node is a layer whose output channels are others than its input channels."""
    return node in group.writers and not is_depthwise(node.module)


@torch.no_grad()
def input_peaks(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Runs the model, and returns layer -> (I,) on the CPU, the largest magnitude of each channel that it reads."""
    peaks: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def before(module: Any, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            x = args[0] if args else options["input"]
            axis = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)
            peak = x.abs().movedim(axis, 0).flatten(1).amax(1).cpu()
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return before

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, MIXING)]
    handles = [m.register_forward_pre_hook(hook(name), with_kwargs=True) for name, m in layers]
    try:
        model(*copied(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return peaks
