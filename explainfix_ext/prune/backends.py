"""Cuts: which channels go, as a plan, with what the proof needs to know."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.text import first_line
from explainfix_ext.prune.cut.liveness import Observed, keep_enough, observe, removable_groups
from explainfix_ext.prune.cut.plan import Plan, add_folds, empty_plan, make_plan
from explainfix_ext.prune.trace.fx_trace import ChannelTrace
from explainfix_ext.prune.trace.graph import ChannelGraph

from .settings import Settings
from .verify import to_double, where_they_part


@dataclass
class Cuts:
    """What goes.

    Attributes:
        plan: without the zeros.
        unread: layer -> (I,) bool, the input channels that are no longer read.
        protected, ties: as in PruneReport.
    """

    plan: Plan = field(default_factory=empty_plan)
    unread: dict[str, Tensor] = field(default_factory=dict)
    protected: dict[str, str] = field(default_factory=dict)
    ties: list[list[str]] = field(default_factory=list)
    trace: ChannelTrace | None = None
    gone: Tensor | None = None

    def where(self, pruned: nn.Module, masked: nn.Module, inputs: tuple[Any, ...]) -> str:
        """Words for an error: the first operation at which the two differ."""
        if self.trace is None or self.gone is None:
            return ""
        name = where_they_part(pruned, masked, self.trace.graph, self.trace.channels, self.gone, inputs)
        return f"; they part at {name}" if name else ""


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


def protected_layers(channels: ChannelGraph, groups: Tensor) -> dict[str, str]:
    """Layers some of whose outputs must stay, with the reason."""
    reasons = channels.protection(groups)
    found: dict[str, str] = {}
    for layer in channels.layers():
        held = next((reasons[g] for g in groups[layer.outputs].tolist() if g in reasons), None)
        if held is not None:
            found[layer.name] = held
    return found


def tied_layers(channels: ChannelGraph, groups: Tensor) -> list[list[str]]:
    """Layers whose outputs go together."""
    together: dict[int, list[str]] = {}
    for layer in channels.layers():
        names = together.setdefault(int(groups[layer.outputs].min()), [])
        if layer.name not in names:
            names.append(layer.name)
    return [names for names in together.values() if len(names) > 1]
