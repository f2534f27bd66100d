"""Which filters are set to zero: the lowest scores, of the whole network or of each layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lowest(scores: dict[str, Tensor], amount: float, scope: str, max_layer_amount: float) -> dict[str, Tensor]:
    """The `amount` lowest of all scores, True where a filter goes.

    Args:
        scores: name -> tensor of any shape, the score of each filter or channel of a layer.
        amount: share of all numbers in `scores` (scope "global"), or of each layer's ("layer"), in [0, 1).
        max_layer_amount: no layer loses more than this share; it must be at least `amount`. One number stays at least.
    """
    if scope == "layer":
        limits = {name: min(round(amount * s.numel()), s.numel() - 1) for name, s in scores.items()}
        return {name: _lowest(s.flatten(), max(0, limits[name])).reshape(s.shape) for name, s in scores.items()}
    flat = {name: s.flatten().double() for name, s in scores.items()}
    for name, s in flat.items():
        most = min(math.floor(max_layer_amount * len(s) + 1e-9), len(s) - 1)
        flat[name] = torch.where(_lowest(s, max(0, most)), s, torch.inf)
    total = torch.cat(list(flat.values()))
    chosen = _lowest(total, min(round(amount * len(total)), int((total != torch.inf).sum())))
    parts = chosen.split([len(s) for s in flat.values()])
    return {name: part.reshape(scores[name].shape) for (name, part) in zip(flat, parts, strict=True)}


def lowest_rows(scores: dict[str, Tensor], amount: float, scope: str, max_layer_amount: float) -> dict[str, Tensor]:
    """As `lowest`, of whole output channels by their mean score: (O, I/groups) bool. A channel counts as many filters
    as it has."""
    means = {name: s.double().mean(1) for name, s in scores.items()}
    if scope == "layer":
        rows = lowest(means, amount, scope, max_layer_amount)
    else:
        kept = lowest(means, max_layer_amount, "layer", 1.0)  # of each layer, those that may go
        flat = torch.cat([torch.where(kept[name], m, torch.inf) for name, m in means.items()])
        widths = torch.cat([torch.full((len(s),), s.shape[1]) for s in scores.values()])
        order = flat.argsort(stable=True)
        wanted = widths[order].cumsum(0) <= round(amount * int(widths.sum()))
        chosen = torch.zeros(len(flat), dtype=torch.bool)
        chosen[order[wanted & torch.isfinite(flat[order])]] = True
        rows = dict(zip(means, chosen.split([len(m) for m in means.values()]), strict=True))
    return {name: row[:, None].expand(scores[name].shape) for name, row in rows.items()}


def _lowest(scores: Tensor, k: int) -> Tensor:
    """(n,) bool: the k lowest; of equal ones the first."""
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(k).values
    below = scores < limit
    equal = (scores == limit).nonzero().flatten()
    below[equal[: k - int(below.sum())]] = True
    return below


def effective_limit(amount: float, max_layer_amount: float) -> float:
    """A layer may lose `max_layer_amount`, or, if that is more, all but half of the average share that stays."""
    return max(max_layer_amount, (1 + amount) / 2)
