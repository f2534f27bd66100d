"""This module sets the filters with the lowest scores to zero, the first half of what `channelprune` does."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import is_spatial
from explainfix_ext.prune.cut.cuts import protected_layers
from explainfix_ext.prune.cut.layers import nonzero_filters, zero_filters_
from explainfix_ext.prune.score.criteria import Context, score
from explainfix_ext.prune.score.select import effective_limit, lowest, lowest_rows
from explainfix_ext.prune.score.units import choose_units, find_units
from explainfix_ext.prune.trace.graph import ChannelGraph

from .costs import LayerCost
from .settings import Settings


def mask_(
    model: nn.Module,
    layers: dict[str, nn.Conv2d],
    before: dict[str, LayerCost],
    channels: ChannelGraph | None,
    settings: Settings,
) -> tuple[bool, dict[str, Tensor]]:
    """Scores the filters of `layers`, and zeroes the lowest, in place.

    Args:
        model: the network, in eval mode, whose layers are zeroed.
        layers: name -> spatial layer, those that may lose filters.
        before: name -> LayerCost.
        channels: the graph of channels; None if the model was not traced.
        settings: the arguments of `channelprune`.

    Returns:
        False if all chosen filters were zero already, else True; and name -> (O, I/groups) bool, what became zero of
        layers that are not spatial, because they write a channel that all its filters lost.

    Raises:
        ValueError: scores are missing or not usable, or every channel must stay.
    """
    scores = score(
        settings.criterion,
        Context(
            model=model,
            layers=layers,
            channels=channels,
            data=settings.data,
            cost=settings.cost,
            compat=settings.compat,
            seed=settings.seed,
        ),
    )
    if settings.weigh == "work":
        scores = {name: s / before[name].pixels for name, s in scores.items()}
    chosen = _filters_to_zero(model, scores, layers, channels, settings)
    new = any(bool((chosen[name] & nonzero_filters(layers[name])).any()) for name in scores)
    for name, mask in chosen.items():
        zero_filters_(model.get_submodule(name), mask)
    return new, {name: mask for name, mask in chosen.items() if name not in layers}


def _filters_to_zero(
    model: nn.Module,
    scores: dict[str, Tensor],
    layers: dict[str, nn.Conv2d],
    channels: ChannelGraph | None,
    settings: Settings,
) -> dict[str, Tensor]:
    """Returns layer -> (O, I/groups) bool, True where a filter is to be zero."""
    limit = effective_limit(settings.amount, settings.max_layer_amount)
    zeros = {name: ~nonzero_filters(layers[name]) for name in scores}
    if settings.granularity == "filter":
        zeros_first = {name: s.masked_fill(zeros[name], -torch.inf) for name, s in scores.items()}
        return lowest(zeros_first, settings.amount, settings.scope, limit)
    if channels is None:
        return lowest_rows(scores, settings.amount, settings.scope, limit)
    units = find_units(channels, set(scores), _not_spatial(model, channels, settings))
    if not bool(units.can_go.any()):
        reasons = protected_layers(channels, units.groups)
        found = [reasons[name] for name in scores if name in reasons] or [reason for _, reason in channels.protected]
        others = "layers that are ignored, or a learned 1x1 behind fixed filters, write them"
        held = "; ".join(dict.fromkeys(found)) or others
        raise NothingToPrune(f"nothing to prune: every channel of the spatial layers must stay: {held}")
    return choose_units(units, scores, zeros, amount=settings.amount, scope=settings.scope, limit=limit)


def _not_spatial(model: nn.Module, channels: ChannelGraph, settings: Settings) -> set[str]:
    """Returns the names of layers without spatial filters, such as 1x1 convolutions, that are not ignored."""
    names = {layer.name for layer in channels.layers() if not is_spatial(model.get_submodule(layer.name))}
    return {name for name in names if not any(fnmatchcase(name, glob) for glob in settings.ignore)}


class NothingToPrune(ValueError):
    """Says that as many filters are zero already as are asked for, or that none may go."""
