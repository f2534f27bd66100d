"""This module chooses whole channels, for `channelprune(granularity="channel")`.

A unit is a tied group of channels. It goes when all the spatial filters that write and read its channels are zero, and
with them the weights of other layers that write these channels, such as a 1x1 convolution beside a 3x3 one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from explainfix_ext.prune.cut.liveness import all_of_group, any_of_group, liveness
from explainfix_ext.prune.cut.observe import Observed
from explainfix_ext.prune.trace.graph import ChannelGraph, MixingLayer, in_groups


@dataclass
class Units:
    """Holds the tied groups of channels, and which of them can go when spatial filters are zeroed.

    Attributes:
        groups: (ids,) for each id the smallest id of its tied group, by which the group is known.
        can_go: (ids,) bool, True for all ids of a group that can go.
        alone: (ids,) bool, True for all ids of a group that can go while no weight of `others` is zero.
        layers: the spatial layers to prune.
        others: the layers that are not scored, and whose rows become zero with a unit that they write.
    """

    groups: Tensor
    can_go: Tensor
    alone: Tensor
    layers: list[MixingLayer]
    others: list[MixingLayer]

    def masks(self, chosen: Tensor) -> dict[str, Tensor]:
        """Returns layer -> (O, I/groups) bool, the filters to zero so that some units go.

        Args:
            chosen: (ids,) bool, True at the smallest id of each group that goes.
        """
        masks: dict[str, Tensor] = {}
        for layer in self.layers:
            rows, columns = self._sides(layer)
            mask = (chosen[rows][:, :, None] | chosen[columns][:, None, :]).reshape(-1, columns.shape[1])
            masks[layer.name] = masks.get(layer.name, torch.zeros_like(mask)) | mask
        return masks

    def rows(self, chosen: Tensor) -> dict[str, Tensor]:
        """Returns, for each of `others` that writes a chosen unit, (O, I/groups) bool: the rows to zero with it."""
        found: dict[str, Tensor] = {}
        for layer in self.others:
            rows, columns = self._sides(layer)
            mask = chosen[rows].reshape(-1, 1).expand(-1, columns.shape[1])
            if bool(mask.any()):
                found[layer.name] = found.get(layer.name, torch.zeros_like(mask)) | mask
        return found

    def _sides(self, layer: MixingLayer) -> tuple[Tensor, Tensor]:
        """Returns the units of a layer's output channels (groups, O/groups) and input channels (groups, I/groups)."""
        inputs, outputs = in_groups(layer)
        return self.groups[outputs], self.groups[inputs]

    def scores(self, filters: dict[str, Tensor], scope: str) -> Tensor:
        """Returns (ids,): at the smallest id of each group the mean score of its filters.

        Args:
            filters: layer -> (O, I/groups), the filters' scores.
            scope: "global"; or "layer", which takes a channel's rank within its layer in place of its score.
        """
        total, count = (torch.zeros(len(self.groups), dtype=torch.float64) for _ in range(2))
        for layer in self.layers:
            score = filters[layer.name].double().reshape(layer.groups, -1, layer.inputs.numel() // layer.groups)
            for unit, mean in zip(self._sides(layer), (score.mean(2), score.mean(1)), strict=True):
                if scope == "layer":
                    mean = mean.reshape(-1).argsort().argsort().reshape(mean.shape) / mean.numel()
                width = score.numel() // mean.numel()
                total.index_add_(0, unit.reshape(-1), mean.reshape(-1).double() * width)
                count.index_add_(0, unit.reshape(-1), torch.full((mean.numel(),), float(width), dtype=torch.float64))
        return total / count.clamp(min=1)


def find_units(channels: ChannelGraph, names: set[str], others: set[str]) -> Units:
    """Finds the units that can go if all filters of some layers are zero, and no other weight is.

    Args:
        channels: the graph.
        names: the spatial layers to prune. A unit has at least one of their filters.
        others: layers whose rows may become zero with a unit that they write.
    """
    groups = channels.tied_groups()
    layers, beside = (
        [layer for layer in channels.layers() if layer.name in chosen and not layer.part] for chosen in (names, others)
    )
    touched = torch.zeros(channels.count, dtype=torch.bool)
    for layer in layers:
        touched[layer.inputs] = touched[layer.outputs] = True
    touched = any_of_group(groups, touched)
    can_go, alone = (all_of_group(groups, _gone(channels, names, rows)) & touched for rows in (others, set[str]()))
    return Units(groups, can_go, alone, layers, beside)


def _gone(channels: ChannelGraph, names: set[str], others: set[str]) -> Tensor:
    """Returns (ids,) bool, the channels that are zero, or read by nothing, once the weights of these are zero."""
    varying, wanted = (torch.zeros(channels.count, dtype=torch.bool) for _ in range(2))
    for layer in channels.layers():
        varying[layer.outputs] |= layer.name not in names | others or bool(layer.part)
        wanted[layer.inputs] |= layer.name not in names or bool(layer.part)
    weights = {}
    for layer in channels.layers():
        inputs, outputs = in_groups(layer)
        weights[id(layer)] = torch.zeros(layer.groups, outputs.shape[1], inputs.shape[1], dtype=torch.bool)
    unknown = torch.full((channels.count,), torch.inf, dtype=torch.float64)
    everywhere = torch.ones(channels.count, dtype=torch.bool)
    observed = Observed(peak=unknown, mean=unknown, flat=everywhere)
    found = liveness(
        channels, weights, observed, droppable=everywhere, annuls=everywhere, varying=varying, wanted=wanted
    )
    return (found.zero | ~found.read) & ~channels.must_stay()


def choose_units(
    units: Units, filters: dict[str, Tensor], zeros: dict[str, Tensor], *, amount: float, scope: str, limit: float
) -> dict[str, Tensor]:
    """Chooses the units with the lowest scores, as many as it takes until the share `amount` of the filters is zero.

    Units that go only with rows of layers which are not scored come after all others: what those layers add, such as
    the shortcut of a residual network, is lost with them, and no score says how much that is.

    Args:
        units: from `find_units`.
        filters: layer -> (O, I/groups), the filters' scores.
        zeros: layer -> (O, I/groups) bool, the filters that are zero already; they count.
        amount: share of all filters, in [0, 1).
        scope: as `Units.scores` takes it.
        limit: no layer loses more than this share of its outputs or of its inputs.

    Returns:
        Layer -> (O, I/groups) bool, the filters to zero, and the rows of layers that are not spatial.
    """
    scores = units.scores(filters, scope)
    scores[~units.alone] += scores.max() - scores.min() + 1
    scores = torch.where(units.can_go, scores, torch.inf)
    for layer in (*units.layers, *units.others):
        for side in (layer.outputs, layer.inputs) if layer.name in filters else (layer.outputs,):
            best = scores[units.groups[side]]
            stay = best.argsort(descending=True)[: max(1, round((1 - limit) * len(side)))]
            scores[units.groups[side[stay]]] = torch.inf
    candidates = units.groups.unique()
    candidates = candidates[torch.isfinite(scores[candidates])]
    order = candidates[scores[candidates].argsort(stable=True)]  # stable: the first of equal scores
    total = sum(s.numel() for s in filters.values())

    def lowest(count: int) -> Tensor:
        chosen = torch.zeros(len(units.groups), dtype=torch.bool)
        chosen[order[:count]] = True
        return chosen

    low, high = 0, len(order)  # bisection for the smallest number of units that reaches the amount
    while low < high:
        middle = (low + high) // 2
        zero = sum(int((mask | zeros[name]).sum()) for name, mask in units.masks(lowest(middle)).items())
        low, high = (middle + 1, high) if zero < amount * total else (low, middle)
    return units.masks(lowest(low)) | units.rows(lowest(low))
