"""This module gives attributes of modules, such as `self.width`, the values with which the code fits what is left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext.prune.trace.graph import ChannelGraph
from explainfix_ext.prune.trace.solve import solve

from .liveness import keep_enough


def fit_sizes(
    channels: ChannelGraph, groups: Tensor, gone: Tensor, *, min_channels: int, round_to: int
) -> tuple[Tensor, dict[str, int]]:
    """Takes groups back until every layer keeps enough, and the sizes in the model's code can be what is left.

    Args:
        channels: the graph.
        groups: its `tied_groups()`.
        gone: (ids,) bool, what can go.
        min_channels, round_to: as `keep_enough` takes them.

    Returns:
        What still goes, (ids,) bool, and the attributes that change -> their values.
    """
    while True:
        gone = keep_enough(channels, groups, gone, min_channels=min_channels, round_to=round_to)
        changed, unsolved = solve(channels.sizes, gone, channels.fixed)
        if not unsolved:
            return gone, changed
        for size in unsolved:
            gone = gone & ~torch.isin(groups, groups[size.rows])


def new_sizes(model: nn.Module, changed: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Returns the entries of a plan for attributes that change, such as {"stages.0.width": 8, "mix.sizes[1]": 3}."""
    entries: dict[str, dict[str, Any]] = {}
    for key, value in changed.items():
        name, _, item = key.partition("[")
        whole = attribute_of(model, name)
        whole = list(whole) if item else whole
        entry = entries.setdefault(name, {"whole": whole, "left": list(whole) if item else whole})
        if item:
            entry["left"][int(item[:-1])] = value
        else:
            entry["left"] = value
    return entries


def attribute_of(model: nn.Module, name: str) -> Any:
    """Returns an attribute that is no tensor and no module, by its name in the model; None if there is none."""
    owner, _, attribute = name.rpartition(".")
    module = dict(model.named_modules()).get(owner)
    return None if module is None else vars(module).get(attribute)


def set_size_(model: nn.Module, name: str, left: Any) -> None:
    """Gives an attribute the value that the plan says; a tuple stays a tuple."""
    owner, _, attribute = name.rpartition(".")
    before = attribute_of(model, name)
    vars(model.get_submodule(owner))[attribute] = left if isinstance(before, int) else type(before)(left)
