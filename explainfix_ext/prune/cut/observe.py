"""This module runs the traced graph of the masked model, and notes what each channel holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from explainfix_ext.prune.trace.graph import ChannelGraph, Map

_UNSEEN = -1.0


@dataclass
class Observed:
    """Holds what the masked model computed on one input, for each id.

    Attributes:
        peak: (ids,) float64, the largest magnitude; infinite where nothing was seen.
        mean: (ids,) float64, the value of the channel, meaningful where it is a constant.
        flat: (ids,) bool, True where all elements are equal, up to rounding.
    """

    peak: Tensor
    mean: Tensor
    flat: Tensor


@torch.no_grad()
def observe(model: nn.Module, graph: fx.Graph, channels: ChannelGraph, inputs: tuple[Any, ...]) -> Observed:
    """Runs the traced graph with `model`'s weights, and notes what each channel holds."""
    n = channels.count
    peak = torch.full((n,), _UNSEEN, dtype=torch.float64)
    found = Observed(peak, torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.bool))

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if node.name in channels.values and isinstance(result, Tensor):
                axis, ids = channels.values[node.name]
                _note(found, ids, result.movedim(axis, 0).reshape(len(ids), -1).double())
            return result

    Recorder(model, graph=graph).run(*inputs)
    for relation in channels.relations:
        if isinstance(relation, Map) and bool((found.peak[relation.output] == _UNSEEN).any()):
            # No value of the network has these ids: a rule made them, to bring several channels together.
            found.peak[relation.output] = torch.stack([found.peak[one] for one in relation.inputs]).amax(0)
            found.flat[relation.output] = False
    found.flat &= found.peak != _UNSEEN
    found.peak[found.peak == _UNSEEN] = torch.inf
    return found


def _note(found: Observed, ids: Tensor, rows: Tensor) -> None:
    """Notes one value of the network, given as a row (elements,) for each channel."""
    low, high = rows.aminmax(dim=1)
    size = torch.maximum(low.abs(), high.abs())
    found.peak.scatter_reduce_(0, ids, size.cpu(), "amax")
    found.mean[ids] = rows[:, 0].cpu()
    found.flat.scatter_reduce_(0, ids, (high - low <= 1e-7 * size).cpu(), "amin")
