"""Which channels can go: nothing that depends on the input comes out of them, or nobody reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from explainfix_ext.prune.trace.graph import ChannelGraph, Layer, Map, in_groups

from .layers import layer_nonzero


@dataclass
class Observed:
    """Per id, of the masked model on one input: the largest magnitude, the mean, and whether all elements agree."""

    peak: Tensor
    mean: Tensor
    flat: Tensor


@torch.no_grad()
def observe(model: nn.Module, graph: fx.Graph, channels: ChannelGraph, inputs: tuple[Any, ...]) -> Observed:
    """Run the traced graph with `model`'s weights."""
    n = channels.count
    double = torch.float64
    unseen = -1.0
    found = Observed(
        torch.full((n,), unseen, dtype=double), torch.zeros(n, dtype=double), torch.ones(n, dtype=torch.bool)
    )

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if node.name in channels.values and isinstance(result, Tensor):
                axis, ids = channels.values[node.name]
                rows = result.movedim(axis, 0).flatten(1).double()
                low, high = rows.aminmax(dim=1)
                found.peak.scatter_reduce_(0, ids, torch.maximum(low.abs(), high.abs()).cpu(), "amax")
                found.mean[ids] = rows[:, 0].cpu()
                spread = (high - low) <= 1e-7 * torch.maximum(low.abs(), high.abs())
                found.flat.scatter_reduce_(0, ids, spread.cpu(), "amin")
            return result

    Recorder(model, graph=graph).run(*inputs)
    for relation in channels.relations:
        if isinstance(relation, Map) and bool((found.peak[relation.output] == unseen).any()):  # ids that were merged
            found.peak[relation.output] = torch.stack([found.peak[one] for one in relation.inputs]).amax(0)
            found.flat[relation.output] = False
    found.flat &= found.peak != unseen
    found.peak[found.peak == unseen] = torch.inf
    return found


@dataclass
class Liveness:
    """Per id: does it depend on the input (`constant`: not), is it as good as zero, does anybody read it."""

    constant: Tensor
    zero: Tensor
    read: Tensor


def liveness(
    channels: ChannelGraph,
    weights: dict[int, Tensor],
    observed: Observed,
    droppable: Tensor,
    annuls: Tensor,
    varying: Tensor | None = None,
    wanted: Tensor | None = None,
) -> Liveness:
    """Constants forward through the network, readers backward.

    Args:
        weights: id of each Layer -> (groups, O/groups, I/groups) bool, which filters are not zero.
        droppable: (ids,) bool: a constant other than zero counts as zero for what reads it.
        annuls: (ids,) bool: it also makes a product zero whose factor it is.
        varying, wanted: (ids,) bool: what no constant is, and what is read, whatever the weights are.
    """
    n = channels.count
    given = torch.zeros(n, dtype=torch.bool)  # constants of the model itself are no pruned channels
    for ids in channels.constant:
        given[ids] = True
    nothing = observed.peak == 0
    constant, zero, factor = given.clone(), given & nothing, given & nothing
    varying = torch.zeros(n, dtype=torch.bool) if varying is None else varying

    for relation in channels.relations:
        if isinstance(relation, Layer):
            inputs, outputs = in_groups(relation)
            ids = outputs.reshape(-1)
            constant[ids] = ~(weights[id(relation)] & ~constant[inputs][:, None, :]).any(2).reshape(-1) & ~varying[ids]
        else:
            ids, ones = relation.output, relation.inputs
            annulled = torch.stack([factor[one] for one in ones]).any(0) & relation.product
            constant[ids] = torch.stack([constant[one] for one in ones]).all(0) | annulled
            given[ids] = torch.stack([given[one] for one in ones]).all(0)
        zero[ids] = constant[ids] & (nothing[ids] | (droppable[ids] & ~given[ids]))
        factor[ids] = constant[ids] & (nothing[ids] | (annuls[ids] & ~given[ids]))

    read = channels.must_stay()
    if wanted is not None:
        read |= wanted
    for relation in reversed(channels.relations):
        if isinstance(relation, Layer):
            inputs, outputs = in_groups(relation)
            used = (weights[id(relation)] & read[outputs][:, :, None]).any(1)
            read[inputs[used]] = True
        else:
            # A constant other than zero may come out as zero, behind a ReLU: then nobody sees it.
            seen = read[relation.output] & ~zero[relation.output]
            for k, one in enumerate(relation.inputs):
                others = [factor[other] for j, other in enumerate(relation.inputs) if j != k and relation.product]
                read[one[seen & ~torch.stack(others).any(0) if others else seen]] = True
    return Liveness(constant, zero, read)


def removable_groups(
    channels: ChannelGraph, groups: Tensor, model: nn.Module, observed: Observed, bn_bias: str, agree: str
) -> Tensor:
    """(ids,) bool: the tied groups that go, True for each of their ids.

    Args:
        groups: `channels.tied_groups()`.
        model: the masked model.
        bn_bias: what a constant other than zero does: "keep" holds the channel; "drop" counts it as zero; "fold" counts
            it as zero where all that read it can take it into their bias.
        agree: "all": each id of the group must be zero or unread; "any": it is enough that one layer writes zero.
    """
    protected = channels.must_stay()
    droppable = torch.full((channels.count,), bn_bias != "keep")
    annuls = torch.full((channels.count,), bn_bias == "drop")  # a folded factor still multiplies
    if bn_bias == "fold":
        droppable &= foldable(channels, model, observed)
    weights = {id(layer): layer_nonzero(layer, model.get_submodule(layer.name)) for layer in channels.layers()}
    while True:
        found = liveness(channels, weights, observed, droppable, annuls & droppable)
        gone = found.zero | ~found.read
        if agree == "any":
            written = torch.zeros_like(gone)
            for layer in channels.layers():
                written[layer.outputs] = found.constant[layer.outputs]
            gone = spread(groups, written, torch.any) | spread(groups, gone, torch.all)
            return gone & ~spread(groups, protected, torch.any)
        gone = spread(groups, gone & ~protected, torch.all)
        # A constant that stays, because its group does, is no zero for those behind it: once more without.
        stays = droppable & found.constant & (observed.peak != 0) & ~gone
        if not bool(stays.any()):
            return gone
        droppable &= ~stays


def foldable(channels: ChannelGraph, model: nn.Module, observed: Observed) -> Tensor:
    """(ids,) bool: a constant that every layer behind can take into its bias: it is the same at every pixel, borders
    included."""
    can = observed.flat.clone()
    for layer in channels.layers():
        if not takes_constants(layer, model.get_submodule(layer.name)):
            can[layer.inputs] = False
    return can


def takes_constants(layer: Layer, module: Any) -> bool:
    """A constant input is a constant output: no padding, which is zero, comes in between."""
    if isinstance(module, nn.Linear):
        return True
    plain = isinstance(module, nn.Conv2d) and not layer.part and getattr(module, "pointwise", None) is None
    return (
        plain
        and type(module).forward.__qualname__.split(".")[0] in ("Conv2d", "FixedConv2d")
        and module.padding in ((0, 0), "valid")
    )


def keep_enough(channels: ChannelGraph, groups: Tensor, gone: Tensor, min_channels: int, round_to: int) -> Tensor:
    """Take groups back until every layer keeps `min_channels` outputs and inputs, in multiples of `round_to` where it
    has one group; of each Parameter at least one number is kept.

    Taking back is safe: a channel that can go may stay. (If it is a factor that was dropped, what it multiplies is no
    zero then; the proof would see it.)
    """
    gone = gone.clone()
    changed = True
    while changed:
        changed = False
        for layer in channels.layers():
            multiple = round_to if layer.groups == 1 else 1
            for ids in (layer.outputs, layer.inputs):
                while bool(gone[ids].any()) and not _enough(int((~gone[ids]).sum()), min_channels, multiple):
                    first = groups[ids[gone[ids]][0]]
                    gone &= groups != first
                    changed = True
        for use in channels.per_channel:
            if bool(gone[use.ids].all()):
                gone &= groups != groups[use.ids[0]]
                changed = True
    return gone


def _enough(kept: int, min_channels: int, multiple: int) -> bool:
    return kept >= min_channels and kept % multiple == 0


def spread(groups: Tensor, flags: Tensor, how: Any) -> Tensor:
    """For each id: do all (or any) of its group have the flag?"""
    start, reduce = (True, "amin") if how is torch.all else (False, "amax")
    per_group = torch.full_like(flags, start).scatter_reduce(0, groups, flags, reduce)
    return per_group[groups]
