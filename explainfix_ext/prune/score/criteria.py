"""This module scores spatial filters, of which the lowest are pruned.

Every criterion is a function of a Context that returns one score a filter, (O, I/groups) for each spatial layer.
`score` calls the one that the user names, or takes scores of the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.layout import as_picture
from explainfix_ext.explain.saliency import Cost, saliency, sum_over_samples
from explainfix_ext.prune.cut.layers import by_output, filter_shape
from explainfix_ext.prune.trace.graph import ChannelGraph, Map, MixingLayer, in_groups, norms_after

from .response import each_call, obs_scores, response_scores

Scores = dict[str, Tensor]
Criterion = str | Mapping[str, Tensor] | Callable[[str, nn.Conv2d], Tensor]


@dataclass
class Context:
    """Holds what a criterion may use.

    Attributes:
        model: the network, in eval mode.
        layers: name -> spatial layer, those to be scored.
        channels: the graph of channels; None if the model was not traced.
        data, cost, compat, seed: as `channelprune` takes them.
        name: the criterion's name, for errors.
    """

    model: nn.Module
    layers: dict[str, nn.Conv2d]
    channels: ChannelGraph | None = None
    data: Iterable[tuple[Tensor, Tensor]] | None = None
    cost: Cost | None = None
    compat: str | None = None
    seed: int = 0
    name: str = ""

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Returns the data; raises ValueError if none was given."""
        if self.data is None:
            raise ValueError(f"criterion {self.name!r} needs data: batches (x, y)")
        return self.data

    def graph(self) -> ChannelGraph:
        """Returns the graph of channels; raises ValueError if the model was not traced."""
        if self.channels is None:
            raise ValueError(
                f"criterion {self.name!r} follows channels by torch.fx: it needs structured=True and backend fx"
            )
        return self.channels


def explainfix(context: Context) -> Scores:
    """Scores a filter by sum |w dc/dw| (ExplainFix 2023)."""
    return saliency(context.model, context.batches(), context.cost, compat=context.compat)


def taylor(context: Context) -> Scores:
    """Scores a filter by the mean over samples of (sum w dc/dw)^2 (Molchanov et al. 2019)."""

    def squared(weight: Tensor, gradients: Tensor) -> Tensor:
        return (weight * gradients).sum(-1).square()

    return sum_over_samples(context.model, context.batches(), context.cost, squared)


def l1(context: Context) -> Scores:
    """Scores a filter by sum |w|."""
    return {name: layer.weight.detach().abs().flatten(2).sum(2) for name, layer in context.layers.items()}


def l2(context: Context) -> Scores:
    """Scores a filter by its Euclidean norm."""
    return {name: layer.weight.detach().flatten(2).norm(dim=2) for name, layer in context.layers.items()}


def bn_scale(context: Context) -> Scores:
    """Scores all filters of a channel by |gamma| of the BatchNorm that follows (Liu et al. 2017)."""
    graph = context.graph()
    norm_of = norms_after(graph)
    scores: Scores = {}
    for layer in graph.layers():
        if layer.name not in context.layers:
            continue
        name = norm_of.get(layer.name)
        norm: Any = context.model.get_submodule(name) if name else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.weight is None:
            raise ValueError(
                f'criterion "bn_scale" needs a BatchNorm behind every spatial layer: {layer.name} has none'
            )
        scores[layer.name] = norm.weight.detach().abs()[:, None].expand(filter_shape(context.layers[layer.name]))
    return scores


def hrank(context: Context) -> Scores:
    """Scores all filters of a channel by the mean rank of its feature maps (Lin et al. 2020)."""
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        ranks = torch.linalg.matrix_rank(as_picture(y).float()).double().sum(0).cpu()
        sums[name] = sums.get(name, 0) + ranks

    samples = each_call(context.model, context.layers, context.batches(), see)
    return {n: (s / samples)[:, None].expand(filter_shape(context.layers[n])) for n, s in sums.items()}


def response(context: Context) -> Scores:
    """Scores a filter by the mean square of what it adds to its output channel; labels are not used."""
    return response_scores(context.model, context.layers, context.batches())


def obs(context: Context) -> Scores:
    """Scores a filter by the error that stays when the others of its output channel have made up for it."""
    return obs_scores(context.model, context.layers, context.batches())


def nisp(context: Context) -> Scores:
    """Scores a filter by its share in the importance of its output channel (Yu et al. 2018).

    The model's outputs have importance 1, which is spread backward over |w| to every channel before them. A filter's
    score is the importance of its output channel times sum |w|, divided by the layer's mean score.
    """
    graph = context.graph()
    importance = torch.zeros(graph.count, dtype=torch.float64)
    for ids in graph.outputs:
        importance[ids] += 1.0
    scores: Scores = {}
    for relation in reversed(graph.relations):
        if isinstance(relation, Map):
            for one in relation.inputs:
                importance.index_add_(0, one, importance[relation.output])
            continue
        magnitude = _magnitude(relation, context.model.get_submodule(relation.name))
        inputs, outputs = in_groups(relation)
        importance.index_add_(
            0, inputs.reshape(-1), torch.einsum("goi,go->gi", magnitude, importance[outputs]).reshape(-1)
        )
        importance /= importance.max().clamp(min=1e-300)  # else deep networks overflow
        if relation.name in context.layers and not relation.part:
            share = magnitude * importance[outputs][:, :, None]
            scores[relation.name] = (share / share.mean().clamp(min=1e-300)).reshape(-1, share.shape[2])
    return scores


def _magnitude(layer: MixingLayer, module: Any) -> Tensor:
    """Returns sum |w| of each filter, (groups, O/groups, I/groups)."""
    weight = (module.pointwise if layer.part else module.weight).detach().double().cpu()
    flat = weight.abs().flatten(2).sum(2) if weight.ndim > 2 else weight.abs()
    flat = by_output(module, flat)
    return flat.reshape(layer.groups, -1, flat.shape[1])


def random(context: Context) -> Scores:
    """Scores filters by uniform random numbers from the seed."""
    generator = torch.Generator().manual_seed(context.seed)
    return {n: torch.rand(filter_shape(layer), generator=generator) for n, layer in context.layers.items()}


CRITERIA: dict[str, Callable[[Context], Scores]] = {
    f.__name__: f for f in (explainfix, taylor, l1, l2, bn_scale, hrank, nisp, response, obs, random)
}


def score(criterion: Criterion, context: Context) -> Scores:
    """Scores the spatial layers by a name of CRITERIA, a mapping, or a callable.

    Args:
        criterion: a name; or name -> (O, I/groups); or (name, module) -> (O, I/groups).
        context: what criteria may use.

    Returns:
        Name -> (O, I/groups) float64 on the CPU.

    Raises:
        ValueError: the criterion is unknown, or scores do not fit, are not finite, or are all zero.
        TypeError: the criterion is none of these.
    """
    layers = context.layers
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
        context.name = criterion
        scores = CRITERIA[criterion](context)
    elif isinstance(criterion, Mapping):
        missing = next((name for name in layers if name not in criterion), None)
        if missing is not None:
            raise ValueError(f"criterion must have a score for every spatial layer, {missing} is missing")
        scores = dict(criterion)
    elif callable(criterion):
        scores = {name: criterion(name, layer) for name, layer in layers.items()}
    else:
        raise TypeError(f"criterion must be a name, a mapping or a callable, got {type(criterion).__name__}")
    checked = {
        name: _checked(name, scores[name], filter_shape(layer)) for name, layer in layers.items() if name in scores
    }
    if not any(bool(s.any()) for s in checked.values()):
        raise ValueError("saliency is zero everywhere: it tells no filter from another")
    return checked


def _checked(name: str, scores: Any, shape: tuple[int, int]) -> Tensor:
    if not isinstance(scores, Tensor) or tuple(scores.shape) != shape:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"scores of {name} must be [O, I/groups] = {list(shape)}, got {got}")
    scores = scores.detach().double().cpu()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"saliency of {name} is not finite: is the cost, or a weight, NaN or infinite?")
    return scores
