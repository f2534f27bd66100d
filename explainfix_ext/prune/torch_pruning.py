"""Cuts for models that torch.fx cannot trace: Torch-Pruning, which follows autograd, says which channels go together.

Which of them go, the plan, the cut and the proof are ours. Torch-Pruning takes an operation that it does not know for
one that leaves every channel where it is: so the proof cannot be switched off.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from explainfix_ext._support.text import first_line
from explainfix_ext.prune.cut.cuts import Cuts, protected_layers, tied_layers
from explainfix_ext.prune.cut.liveness import keep_enough
from explainfix_ext.prune.cut.plan import make_plan

from .coupling import LAYERS, Coupling, Entry, Group, is_depthwise
from .settings import Settings
from .verify import copied

GIVEN, ZERO, LIVE = 0, 1, 2  # what a value is made of: Parameters alone; zero filters alone; the model's input
NONE = torch.empty(0, dtype=torch.long)


def is_installed() -> bool:
    return importlib.util.find_spec("torch_pruning") is not None


def check_settings(settings: Settings) -> None:
    """Raises ValueError for what this backend cannot do, before anything is scored."""
    if not is_installed():
        raise ValueError('backend torch_pruning needs torch-pruning: pip install "explainfix_ext[prune]"')
    if settings.bn_bias == "fold":
        raise ValueError('bn_bias must be "keep" or "drop" with backend torch_pruning, which cannot fold, got "fold"')
    if not settings.verify:
        raise ValueError("verify must be True with backend torch_pruning, which can be wrong about a model, got False")


def cuts_by_torch_pruning(masked: nn.Module, inputs: tuple[Any, ...], settings: Settings) -> Cuts:
    """What can go: each channel of which, with all that it is tied to, no layer reads more than what zero filters made.

    Only what runs on `inputs`, and reaches the outputs through autograd, is followed. Other layers stay as they are:
    where the model takes another branch later, they may get fewer channels than they need.

    Args:
        masked: in eval mode, with zeros for the pruned filters; learned or converted, frozen or not.

    Raises:
        ValueError: Torch-Pruning cannot follow the model.
    """
    try:
        coupling = Coupling(masked, inputs)
        read, zero = _judge(coupling, _peaks(masked, inputs) if settings.bn_bias == "keep" else None)
    except Exception as error:  # the model's own, or from anywhere inside Torch-Pruning
        raise ValueError(f"backend torch_pruning cannot follow this model: {first_line(error)}") from error
    channels, groups = coupling.channels, coupling.channels.tied_groups()
    gone = ~torch.isin(groups, groups[read])
    if settings.agree == "any":
        gone |= torch.isin(groups, groups[zero])
    gone &= ~torch.isin(groups, groups[torch.cat([NONE, *(ids for ids, _ in channels.protected)])])
    gone = keep_enough(channels, groups, gone, settings.min_channels, settings.round_to)
    cuts = Cuts(make_plan(channels, masked, gone))
    cuts.unread = {layer.name: gone[layer.inputs] for layer in channels.layers()}
    cuts.protected = coupling.unseen | protected_layers(channels, groups)
    cuts.ties = tied_layers(channels, groups)
    return cuts


def _judge(coupling: Coupling, peaks: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Ids of channels that some layer reads, and of those that some layer writes with zero filters alone.

    Args:
        peaks: layer -> (I,) largest magnitude that it reads: a constant is read unless it is zero. None: none is.
    """
    read, zero = [NONE], [NONE]
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


def _states(coupling: Coupling, group: Group, annul: bool) -> dict[Any, Tensor]:
    """Node -> (size,) GIVEN, ZERO or LIVE, in the order of computation.

    Args:
        annul: a product is ZERO where one factor is. Only where constants are dropped: others may be other than zero.
    """
    states: dict[Any, Tensor] = {}
    waiting = list(group.nodes)
    while waiting:
        known = [n for n in waiting if _mixes(n, group) or all(i in states or i not in group.nodes for i in n.inputs)]
        for node in known:
            states[node] = _state(coupling, group, node, states, annul)
        if not known:  # a layer that reads itself
            states |= {node: torch.full((group.size,), LIVE) for node in waiting}
        waiting = [node for node in waiting if node not in states]
    return states


def _state(coupling: Coupling, group: Group, node: Any, states: dict[Any, Tensor], annul: bool) -> Tensor:
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


def _before(node: Any, states: dict[Any, Tensor], size: int, product: bool = False) -> Tensor:
    """(size,) what a node reads, ZERO or LIVE. What is GIVEN makes nothing live; what is unknown is LIVE."""
    known = [states[i] for i in node.inputs if i in states and bool(states[i].any())]
    if not known:
        return torch.full((size,), LIVE)
    values = torch.stack(known)
    zero = (values == ZERO).any(0) if product else values.amax(0) == ZERO
    return torch.where(zero, ZERO, LIVE)


def _mixes(node: Any, group: Group) -> bool:
    """Is it a layer whose outputs are other channels than its inputs?"""
    return node in group.writers and not is_depthwise(node.module)


@torch.no_grad()
def _peaks(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Name of each layer that runs -> (I,) the largest magnitude of each channel that it reads, on the CPU."""
    peaks: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def before(module: Any, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            x = args[0] if args else options["input"]
            axis = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)
            peak = x.abs().movedim(axis, 0).flatten(1).amax(1).cpu()
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return before

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, LAYERS)]
    handles = [m.register_forward_pre_hook(hook(name), with_kwargs=True) for name, m in layers]
    try:
        model(*tree_map(copied, inputs))
    finally:
        for handle in handles:
            handle.remove()
    return peaks
