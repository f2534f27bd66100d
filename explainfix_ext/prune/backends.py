"""This module decides who follows the channels, torch.fx (trace/) or Torch-Pruning (torch_pruning/), and finds cuts.

`channelprune` calls `trace_channels` before it scores filters, and `find_cuts` once the lowest are zero.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import nn

from explainfix_ext._support.text import first_line
from explainfix_ext.prune.cut.cuts import Cuts, protected_layers, tied_layers
from explainfix_ext.prune.cut.liveness import removable_groups
from explainfix_ext.prune.cut.observe import Observed, observe
from explainfix_ext.prune.cut.plan import add_folds, make_pruning_plan
from explainfix_ext.prune.cut.sizes import fit_sizes, new_sizes
from explainfix_ext.prune.torch_pruning.backend import check_options, cuts_by_torch_pruning, is_installed
from explainfix_ext.prune.trace.fx_graph import CannotFollow
from explainfix_ext.prune.trace.fx_trace import ChannelTrace
from explainfix_ext.prune.trace.inputs import copied, to_double

from .settings import Settings


def trace_channels(model: nn.Module, inputs: tuple[Any, ...], settings: Settings) -> ChannelTrace | None:
    """Follows the channels with torch.fx; returns None if Torch-Pruning is to do it, in `find_cuts`.

    Raises:
        ValueError: the model can be neither traced nor recorded, and Torch-Pruning is not installed, not wanted, or
            cannot do what the settings ask; or it does not run in training mode.
    """
    if settings.backend != "torch_pruning":
        try:
            return followed(model, inputs, forgets=settings.bn_bias == "drop")
        except CannotFollow as error:
            if settings.backend == "fx" or not is_installed():
                raise
            try:
                check_options(bn_bias=settings.bn_bias, verify=settings.verify)
            except ValueError as other:
                raise ValueError(f"{error}; but {other}") from None
    check_options(bn_bias=settings.bn_bias, verify=settings.verify)
    return None


def followed(model: nn.Module, inputs: tuple[Any, ...], *, forgets: bool = False) -> ChannelTrace:
    """Follows the channels of a model in eval mode with torch.fx; raises ValueError if that cannot be done."""
    trace = ChannelTrace(model, inputs, forgets=forgets)
    try:
        with torch.no_grad():
            trace.run(*copied(inputs))
    except Exception as error:  # its graph did run, but not with what the rules made of its values
        raise CannotFollow(f"the channels of model cannot be followed through torch.fx: {first_line(error)}") from error
    return trace


def find_cuts(masked: nn.Module, inputs: tuple[Any, ...], trace: ChannelTrace | None, settings: Settings) -> Cuts:
    """Finds the channels that can go.

    Args:
        masked: the model in eval mode, with zeros for the pruned filters.
        inputs: its positional arguments.
        trace: from `trace_channels`.
        settings: the arguments of `channelprune`.

    Raises:
        ValueError: Torch-Pruning cannot follow the model.
    """
    enough = {"min_channels": settings.min_channels, "round_to": settings.round_to}
    if trace is None:
        return cuts_by_torch_pruning(masked, inputs, bn_bias=settings.bn_bias, agree=settings.agree, **enough)
    channels, groups = trace.channels, trace.channels.tied_groups()
    observed = _observe(masked, inputs, trace, settings)
    useless = removable_groups(channels, groups, masked, observed, bn_bias=settings.bn_bias, agree=settings.agree)
    gone, changed = fit_sizes(channels, groups, useless, **enough)
    plan = make_pruning_plan(channels, masked, gone)
    if changed:
        plan["sizes"] = new_sizes(masked, changed)
    if settings.bn_bias == "fold":
        add_folds(plan, channels, masked, gone, observed.mean)
    return Cuts(
        plan=plan,
        unread={layer.name: gone[layer.inputs] for layer in channels.layers() if not layer.part},
        useless={layer.name: useless[layer.outputs] for layer in channels.layers() if not layer.part},
        protected=protected_layers(channels, groups),
        ties=tied_layers(channels, groups),
        trace=trace,
        gone=gone,
    )


def _observe(masked: nn.Module, inputs: tuple[Any, ...], trace: ChannelTrace, settings: Settings) -> Observed:
    if settings.bn_bias == "fold":  # constants enter biases: observe them in float64, if the model runs so
        with contextlib.suppress(RuntimeError):
            return observe(copy.deepcopy(masked).double(), trace.graph, trace.channels, to_double(inputs))
    return observe(masked, trace.graph, trace.channels, inputs)
