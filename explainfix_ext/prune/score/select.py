"""This module chooses filters, or whole channels, with the lowest scores of the network or of each layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lowest(scores: dict[str, Tensor], amount: float, scope: str, max_layer_amount: float) -> dict[str, Tensor]:
    """Chooses the share `amount` of the filters with the lowest scores; at least one of each layer stays.

    Args:
        scores: name -> tensor of any shape, the score of each filter or channel of a layer.
        amount: share of all numbers in `scores` (scope "global"), or of each layer's ("layer"), in [0, 1).
        scope: "global" or "layer".
        max_layer_amount: no layer loses more than this share; at least `amount`. Scope "layer" does not use it.

    Returns:
        Name -> bool of the same shape, True where a filter goes.
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
    """Chooses as `lowest` does, but whole output channels by their mean score, each of which counts all its filters.

    Returns:
        Name -> (O, I/groups) bool, True where a filter goes.
    """
    means = {name: s.double().mean(1) for name, s in scores.items()}
    if scope == "layer":
        rows = lowest(means, amount, scope, max_layer_amount)
    else:
        may_go = lowest(means, max_layer_amount, "layer", 1.0)
        flat = torch.cat([torch.where(may_go[name], m, torch.inf) for name, m in means.items()])
        widths = torch.cat([torch.full((len(s),), s.shape[1]) for s in scores.values()])
        order = flat.argsort(stable=True)
        wanted = widths[order].cumsum(0) <= round(amount * int(widths.sum()))
        chosen = torch.zeros(len(flat), dtype=torch.bool)
        chosen[order[wanted & torch.isfinite(flat[order])]] = True
        rows = dict(zip(means, chosen.split([len(m) for m in means.values()]), strict=True))
    return {name: row[:, None].expand(scores[name].shape) for name, row in rows.items()}


def _lowest(scores: Tensor, k: int) -> Tensor:
    """Returns (n,) bool: the k lowest scores, and among equal ones the first."""
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(k).values
    below = scores < limit
    equal = (scores == limit).nonzero().flatten()
    below[equal[: k - int(below.sum())]] = True
    return below


def effective_limit(amount: float, max_layer_amount: float) -> float:
    """Returns the share of its filters that a layer may lose.

    It is `max_layer_amount`, or, if that is more, all but half of the average share that stays.
    """
    return max(max_layer_amount, (1 + amount) / 2)
