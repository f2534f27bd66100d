"""This module holds Cuts, what a backend (backends.py) found out: the plan, and what the report and the check need."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from explainfix_ext.prune.trace.fx_trace import ChannelTrace
from explainfix_ext.prune.trace.graph import ChannelGraph

from .plan import Plan, empty_plan


@dataclass
class Cuts:
    """Holds the channels that go.

    Attributes:
        plan: the pruning plan, without the filters that are zero and stay.
        unread: layer -> (I,) bool, its input channels that go.
        useless: layer -> (O,) bool, its outputs that could go; some stay, for `round_to` and the like.
        protected, ties: as in PruneReport.
        trace: the torch.fx walk; None if torch_pruning followed the channels.
        gone: (ids,) bool, the ids in `trace.channels` that go.
    """

    plan: Plan = field(default_factory=empty_plan)
    unread: dict[str, Tensor] = field(default_factory=dict)
    useless: dict[str, Tensor] = field(default_factory=dict)
    protected: dict[str, str] = field(default_factory=dict)
    ties: list[list[str]] = field(default_factory=list)
    trace: ChannelTrace | None = None
    gone: Tensor | None = None


def protected_layers(channels: ChannelGraph, groups: Tensor) -> dict[str, str]:
    """Returns name -> reason for every layer some of whose output channels must stay."""
    reasons = channels.protection(groups)
    found: dict[str, str] = {}
    for layer in channels.layers():
        held = next((reasons[g] for g in groups[layer.outputs].tolist() if g in reasons), None)
        if held is not None:
            found[layer.name] = held
    return found


def tied_layers(channels: ChannelGraph, groups: Tensor) -> list[list[str]]:
    """Returns the names of layers whose output channels can only go together."""
    together: dict[int, list[str]] = {}
    for layer in channels.layers():
        names = together.setdefault(int(groups[layer.outputs].min()), [])
        if layer.name not in names:
            names.append(layer.name)
    return [names for names in together.values() if len(names) > 1]
