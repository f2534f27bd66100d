"""Cuts: which channels go, as a plan, with what the proof needs to know."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import nn

from explainfix_ext._support.text import first_line
from explainfix_ext.prune.cut.cuts import Cuts, protected_layers, tied_layers
from explainfix_ext.prune.cut.liveness import Observed, keep_enough, observe, removable_groups
from explainfix_ext.prune.cut.plan import add_folds, make_plan
from explainfix_ext.prune.trace.fx_trace import ChannelTrace

from .settings import Settings
from .verify import to_double


def trace_channels(model: nn.Module, inputs: tuple[Any, ...], settings: Settings) -> ChannelTrace | None:
    """Follow the channels with torch.fx; None where torch_pruning is to do it.

    Raises:
        ValueError: the model cannot be traced, and torch_pruning is not there, not wanted, or cannot do what is asked.
    """
    from .torch_pruning import check_settings, is_installed

    try:
        trace = ChannelTrace(model) if settings.backend != "torch_pruning" else None
    except ValueError as error:
        if settings.backend == "fx" or not is_installed():
            raise
        try:
            check_settings(settings)
        except ValueError as other:
            raise ValueError(f"{error}; but {other}") from None
        trace = None
    if trace is None:
        check_settings(settings)
        return None
    try:
        with torch.no_grad():
            trace.run(*inputs)
    except Exception as error:  # in eval mode the model did run
        raise ValueError(
            f"example_inputs must be fit for training, too, where more layers run: {first_line(error)}"
        ) from error
    return trace


def find_cuts(masked: nn.Module, inputs: tuple[Any, ...], trace: ChannelTrace | None, settings: Settings) -> Cuts:
    if trace is None:
        from .torch_pruning import cuts_by_torch_pruning

        return cuts_by_torch_pruning(masked, inputs, settings)
    channels, groups = trace.channels, trace.channels.tied_groups()
    observed = _observe(masked, inputs, trace, settings)
    gone = removable_groups(channels, groups, masked, observed, settings.bn_bias, settings.agree)
    gone = keep_enough(channels, groups, gone, settings.min_channels, settings.round_to)
    plan = make_plan(channels, masked, gone)
    if settings.bn_bias == "fold":
        add_folds(plan, channels, masked, gone, observed.mean)
    unread = {layer.name: gone[layer.inputs] for layer in channels.layers() if not layer.part}
    return Cuts(plan, unread, protected_layers(channels, groups), tied_layers(channels, groups), trace, gone)


def _observe(masked: nn.Module, inputs: tuple[Any, ...], trace: ChannelTrace, settings: Settings) -> Observed:
    if settings.bn_bias == "fold":  # constants enter biases: with all digits, if the model runs so
        with contextlib.suppress(RuntimeError):
            return observe(copy.deepcopy(masked).double(), trace.graph, trace.channels, to_double(inputs))
    return observe(masked, trace.graph, trace.channels, inputs)
