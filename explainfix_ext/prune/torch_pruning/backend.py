"""This module finds the cuts of a model with Torch-Pruning, which follows autograd to see which channels go together.

backends.py calls it for models that torch.fx cannot trace and that cannot be recorded. Which channels go, the plan, the
cut and the check are our own. Torch-Pruning assumes that an operation it does not know leaves every channel where it
is, so it can be wrong about a model: the check cannot be switched off.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from explainfix_ext._support.text import first_line
from explainfix_ext.prune.cut.cuts import Cuts, protected_layers, tied_layers
from explainfix_ext.prune.cut.liveness import keep_enough
from explainfix_ext.prune.cut.plan import make_pruning_plan

from .coupling import Coupling
from .liveness import input_peaks, read_and_zero


def is_installed() -> bool:
    return importlib.util.find_spec("torch_pruning") is not None


def check_options(*, bn_bias: str, verify: bool) -> None:
    """Raises ValueError for what this backend cannot do, before anything is scored."""
    if not is_installed():
        raise ValueError('backend torch_pruning needs torch-pruning: pip install "explainfix_ext[prune]"')
    if bn_bias == "fold":
        raise ValueError('bn_bias must be "keep" or "drop" with backend torch_pruning, which cannot fold, got "fold"')
    if not verify:
        raise ValueError("verify must be True with backend torch_pruning, which can be wrong about a model, got False")


def cuts_by_torch_pruning(
    masked: nn.Module, inputs: tuple[Any, ...], *, bn_bias: str, agree: str, min_channels: int, round_to: int
) -> Cuts:
    """Finds the channels that can go: what layers read of them, and of all tied to them, comes from zero filters alone.

    Only layers that run on `inputs`, and that autograd reaches from the outputs, are followed. Others stay as they are:
    if the model takes another branch later, they may get fewer channels than they need.

    Args:
        masked: the model in eval mode, with zeros for the pruned filters; learned or converted, frozen or not.
        inputs: its positional arguments.
        bn_bias, agree, min_channels, round_to: as `channelprune` takes them.

    Raises:
        ValueError: Torch-Pruning cannot follow the model.
    """
    try:
        coupling = Coupling(masked, inputs)
        read, zero = read_and_zero(coupling, input_peaks(masked, inputs) if bn_bias == "keep" else None)
    except Exception as error:  # the model, or Torch-Pruning, may raise anything
        raise ValueError(f"backend torch_pruning cannot follow this model: {first_line(error)}") from error
    channels, groups = coupling.channels, coupling.channels.tied_groups()
    gone = ~torch.isin(groups, groups[read])
    if agree == "any":
        gone |= torch.isin(groups, groups[zero])
    gone &= ~torch.isin(groups, groups[channels.must_stay()])
    gone = keep_enough(channels, groups, gone, min_channels=min_channels, round_to=round_to)
    return Cuts(
        plan=make_pruning_plan(channels, masked, gone),
        unread={layer.name: gone[layer.inputs] for layer in channels.layers()},
        protected=coupling.unseen | protected_layers(channels, groups),
        ties=tied_layers(channels, groups),
    )
