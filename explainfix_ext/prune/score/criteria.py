"""Scores of spatial filters: the lowest are pruned. Every criterion gives (O, I/groups) for each spatial layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import eval_mode
from explainfix_ext.explain.saliency import Cost, first_batches, saliency, sum_over_samples
from explainfix_ext.prune.cut.layers import by_output, filter_shape
from explainfix_ext.prune.trace.graph import ChannelGraph, Layer, Map, in_groups

Scores = dict[str, Tensor]
Criterion = str | Mapping[str, Tensor] | Callable[[str, nn.Conv2d], Tensor]


@dataclass
class Context:
    """What a criterion may use. `channels` is None where the model was not traced."""

    model: nn.Module
    layers: dict[str, nn.Conv2d]
    channels: ChannelGraph | None
    data: Iterable[tuple[Tensor, Tensor]] | None
    cost: Cost | None
    compat: str | None
    seed: int
    name: str = ""

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        if self.data is None:
            raise ValueError(f"criterion {self.name!r} needs data: batches (x, y)")
        return self.data

    def graph(self) -> ChannelGraph:
        if self.channels is None:
            raise ValueError(
                f"criterion {self.name!r} follows channels by torch.fx: it needs structured=True and backend fx"
            )
        return self.channels


def explainfix(context: Context) -> Scores:
    """sum |w dc/dw| (ExplainFix 2023)."""
    return saliency(context.model, context.batches(), context.cost, compat=context.compat)


def taylor(context: Context) -> Scores:
    """(sum w dc/dw)^2, mean over samples (Molchanov et al. 2019)."""

    def reduce(weight: Tensor, gradients: Tensor) -> Tensor:
        return (weight * gradients).sum(-1).square().sum(0)

    return sum_over_samples(context.model, context.batches(), context.cost, reduce)


def l1(context: Context) -> Scores:
    """sum |w|."""
    return {name: layer.weight.detach().abs().sum((2, 3)) for name, layer in context.layers.items()}


def l2(context: Context) -> Scores:
    """Norm of the filter."""
    return {name: layer.weight.detach().flatten(2).norm(dim=2) for name, layer in context.layers.items()}


def bn_scale(context: Context) -> Scores:
    """|gamma| of the BatchNorm behind each layer (Liu et al. 2017), the same for all filters of a channel."""
    graph = context.graph()
    norms = {use.name: use.ids for use in graph.per_channel}
    readers = {id(m): tuple(m.inputs[0].tolist()) for m in graph.relations if isinstance(m, Map)}
    found: dict[tuple[int, ...], str] = {}
    for relation in graph.relations:
        for name, ids in norms.items():
            if isinstance(relation, Map) and torch.equal(relation.output, ids):
                found[readers[id(relation)]] = name
    scores: Scores = {}
    for layer in graph.layers():
        if layer.name in context.layers:
            norm = found.get(tuple(layer.outputs.tolist()))
            module: Any = context.model.get_submodule(norm) if norm else None
            if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.weight is None:
                raise ValueError(
                    f'criterion "bn_scale" needs a BatchNorm behind every spatial layer: {layer.name} has none'
                )
            gamma = module.weight.detach().abs()
            scores[layer.name] = gamma[:, None].expand(filter_shape(context.layers[layer.name]))
    return scores


def hrank(context: Context) -> Scores:
    """Mean rank of each channel's feature maps (Lin et al. 2020), the same for all filters of a channel."""
    sums: dict[str, Tensor] = {}
    samples = 0

    def hook(name: str) -> Callable[[Any, Any, Tensor], None]:
        def forward(module: Any, args: Any, y: Tensor) -> None:
            ranks = torch.linalg.matrix_rank(y.detach().float()).double().sum(0).cpu()
            sums[name] = sums.get(name, 0) + ranks

        return forward

    handles = [layer.register_forward_hook(hook(name)) for name, layer in context.layers.items()]
    device = next(iter(context.model.parameters()), torch.empty(0)).device
    try:
        with eval_mode(context.model), torch.no_grad():
            for x, _ in first_batches(context.batches(), None):
                context.model(x.to(device))
                samples += len(x)
    finally:
        for handle in handles:
            handle.remove()
    if not samples:
        raise ValueError("data is empty: expected batches (x, y)")
    return {n: (s / samples)[:, None].expand(filter_shape(context.layers[n])) for n, s in sums.items()}


def nisp(context: Context) -> Scores:
    """Importance of the outputs, spread backward over |W| to every channel (Yu et al. 2018): a filter's share is the
    importance of its channel times sum |w|. Scaled to mean 1 in each layer."""
    graph = context.graph()
    importance = torch.zeros(graph.count, dtype=torch.float64)
    for ids, reason in graph.protected:
        importance[ids] += float(reason == "output of the model")
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
        importance /= importance.max().clamp(min=1e-300)  # depth multiplies magnitudes beyond any float
        if relation.name in context.layers and not relation.part:
            share = magnitude * importance[outputs][:, :, None]
            scores[relation.name] = (share / share.mean().clamp(min=1e-300)).reshape(-1, share.shape[2])
    return scores


def _magnitude(layer: Layer, module: Any) -> Tensor:
    """(groups, O/groups, I/groups): sum |w| of each filter."""
    weight = (module.pointwise if layer.part else module.weight).detach().double().cpu()
    flat = weight.abs().flatten(2).sum(2) if weight.ndim > 2 else weight.abs()
    flat = by_output(module, flat)
    return flat.reshape(layer.groups, -1, flat.shape[1])


def random(context: Context) -> Scores:
    """Uniform numbers, from the seed."""
    generator = torch.Generator().manual_seed(context.seed)
    return {n: torch.rand(filter_shape(layer), generator=generator) for n, layer in context.layers.items()}


CRITERIA: dict[str, Callable[[Context], Scores]] = {
    f.__name__: f for f in (explainfix, taylor, l1, l2, bn_scale, hrank, nisp, random)
}


def score(criterion: Criterion, context: Context) -> Scores:
    """Scores by a name of CRITERIA, a mapping name -> (O, I/groups), or a callable (name, module) -> (O, I/groups).

    Raises:
        ValueError: unknown criterion, scores that do not fit or are not finite, or all zero.
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
