"""Cuts: the channels that go, as a plan, with the facts that a report and the comparison with the masked model need."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from explainfix_ext.prune.trace.fx_trace import ChannelTrace
from explainfix_ext.prune.trace.graph import ChannelGraph

from .plan import Plan, empty_plan


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
