"""This module decides which channels can go: those that carry nothing from the input, and those that nobody reads.

backends.py calls it for the model in which the filters with the lowest scores are already zero. A small network shows
the three ways in which a channel becomes useless:

    >>> from explainfix_ext.prune.cut.observe import observe
    >>> from explainfix_ext.prune.trace.fx_trace import ChannelTrace
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    >>> with torch.no_grad():
    ...     model[0].weight[1:3] = 0  # only the bias comes out of channels 1 and 2 ...
    ...     model[0].bias[1:3] = torch.tensor([-1.0, 0.5])  # ... so they are constants: 0 and 0.5 after the ReLU
    ...     model[2].weight[:, 3] = 0  # no filter reads channel 3
    >>> x = torch.randn(1, 3, 8, 8)
    >>> trace = ChannelTrace(model, (x,))
    >>> with torch.no_grad():
    ...     trace.run(x)
    >>> channels, groups = trace.channels, trace.channels.tied_groups()
    >>> stem, observed = channels.layers()[0], observe(model, trace.graph, channels, (x,))
    >>> def gone(bn_bias):
    ...     ids = removable_groups(channels, groups, model, observed, bn_bias=bn_bias, agree="all")
    ...     return ids[stem.outputs].nonzero().flatten().tolist()

Channel 1 is zero after the ReLU and channel 3 is unread, so both can go without a change of the output. Channel 2 is a
constant other than zero: what reads it would miss 0.5, so whether it can go is for `bn_bias` to say.

    >>> gone("keep"), gone("drop")
    ([1, 3], [1, 2, 3])

Channel 0 depends on the input and is read, so it stays. In networks with sums, concatenations or gates, a channel goes
only if all channels that it is tied to can go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.prune.trace.graph import ChannelGraph, MixingLayer, in_groups
from explainfix_ext.prune.trace.kinds import CONVS

from .layers import layer_nonzero
from .observe import Observed

_PLAIN_FORWARDS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward, FixedConv.forward)


@dataclass
class Liveness:
    """Says what is known of each id, as (ids,) bool.

    Attributes:
        constant: it does not depend on the model's input.
        zero: it is a constant that is zero, or that may be dropped and so counts as zero.
        read: some layer or output uses it.
    """

    constant: Tensor
    zero: Tensor
    read: Tensor


def liveness(
    channels: ChannelGraph,
    weights: dict[int, Tensor],
    observed: Observed,
    *,
    droppable: Tensor,
    annuls: Tensor,
    evenly: frozenset[int] = frozenset(),
    varying: Tensor | None = None,
    wanted: Tensor | None = None,
) -> Liveness:
    """Follows constants forward through the network, then readers backward.

    Args:
        channels: the graph.
        weights: `id` of each MixingLayer -> (groups, O/groups, I/groups) bool, its filters that are not zero.
        observed: what the channels hold.
        droppable: (ids,) bool, True where a constant other than zero counts as zero for what reads it.
        annuls: (ids,) bool, True where such a constant, as a factor, also makes its product zero.
        evenly: `id` of each MixingLayer that maps even inputs to even outputs: without padding by zeros.
        varying: (ids,) bool, ids that depend on the input whatever the weights are (default: none).
        wanted: (ids,) bool, ids that are read whatever the weights are (default: none).
    """
    no_id = torch.zeros(channels.count, dtype=torch.bool)
    varying, wanted = no_id if varying is None else varying, no_id if wanted is None else wanted
    nothing = observed.peak == 0
    constant, zero, factor = _follow_constants(channels, weights, nothing, droppable, annuls, evenly, varying)
    return Liveness(constant, zero, _follow_readers(channels, weights, zero, factor, channels.must_stay() | wanted))


def _follow_constants(
    channels: ChannelGraph,
    weights: dict[int, Tensor],
    nothing: Tensor,
    droppable: Tensor,
    annuls: Tensor,
    evenly: frozenset[int],
    varying: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (ids,) bool: constants; those that count as zero; those that make a product zero.

    What was observed of a constant holds for images of any size if it is even: the same at every pixel, because all
    that it is made of is. A constant at the border of a padded image is not, nor is what a pool makes of it.

    Args:
        nothing: (ids,) bool, ids that were zero everywhere when the model ran.
    """
    given = torch.zeros(channels.count, dtype=torch.bool)  # made of the model's own Parameters, not of zero filters
    for ids in channels.constant:
        given[ids] = True
    constant, zero, factor = given.clone(), given & nothing, given & nothing
    even = torch.ones_like(given)
    for relation in channels.relations:
        if isinstance(relation, MixingLayer):
            inputs, outputs = in_groups(relation)
            ids = outputs.reshape(-1)
            reads_input = (weights[id(relation)] & ~constant[inputs][:, None, :]).any(2).reshape(-1)
            constant[ids] = ~reads_input & ~varying[ids]
            uneven = ~(nothing & even)[inputs] if id(relation) not in evenly else ~even[inputs]
            even[ids] = ~(weights[id(relation)] & uneven[:, None, :]).any(2).reshape(-1)
        else:
            ids, operands = relation.output, relation.inputs
            annulled = torch.stack([factor[one] for one in operands]).any(0) & relation.product
            constant[ids] = torch.stack([constant[one] for one in operands]).all(0) | annulled
            given[ids] = torch.stack([given[one] for one in operands]).all(0)
            even[ids] = torch.stack([even[one] & (nothing[one] | relation.even) for one in operands]).all(0) | annulled
        never = nothing[ids] & even[ids]
        zero[ids] = constant[ids] & (never | (droppable[ids] & ~given[ids] & (even[ids] | annuls[ids])))
        factor[ids] = constant[ids] & (never | (annuls[ids] & ~given[ids]))
    return constant, zero, factor


def _follow_readers(
    channels: ChannelGraph, weights: dict[int, Tensor], zero: Tensor, factor: Tensor, read: Tensor
) -> Tensor:
    """Returns (ids,) bool: what is read, given `read`, the ids whose readers lie outside the graph."""
    for relation in reversed(channels.relations):
        if isinstance(relation, MixingLayer):
            inputs, outputs = in_groups(relation)
            used = (weights[id(relation)] & read[outputs][:, :, None]).any(1)
            read[inputs[used]] = True
            continue
        # A constant other than zero may become zero in a ReLU: then nothing after it reads the constant.
        seen = read[relation.output] & ~zero[relation.output]
        for k, one in enumerate(relation.inputs):
            others = [factor[other] for j, other in enumerate(relation.inputs) if j != k and relation.product]
            read[one[seen & ~torch.stack(others).any(0) if others else seen]] = True
    return read


def removable_groups(
    channels: ChannelGraph, groups: Tensor, model: nn.Module, observed: Observed, *, bn_bias: str, agree: str
) -> Tensor:
    """Returns (ids,) bool: the tied groups that can go, True for each of their ids.

    Args:
        channels: the graph.
        groups: its `tied_groups()`.
        model: the masked model.
        observed: what it computes.
        bn_bias: what to do with a constant other than zero. "keep" keeps the channel; "drop" counts it as zero; "fold"
            counts it as zero where all that read it can take it into their bias.
        agree: "all": every id of the group must be zero or unread; "any": it is enough that one layer writes zero.
    """
    protected = channels.must_stay()
    droppable = torch.full((channels.count,), bn_bias != "keep")
    annuls = torch.full((channels.count,), bn_bias == "drop")  # a folded factor still multiplies
    if bn_bias == "fold":
        droppable &= foldable(channels, model, observed)
    modules = {id(layer): (layer, model.get_submodule(layer.name)) for layer in channels.layers()}
    weights = {key: layer_nonzero(layer, module) for key, (layer, module) in modules.items()}
    evenly = frozenset(key for key, (layer, module) in modules.items() if _takes_constants(layer, module))
    while True:
        found = liveness(channels, weights, observed, droppable=droppable, annuls=annuls & droppable, evenly=evenly)
        gone = found.zero | ~found.read
        if agree == "any":
            written = torch.zeros_like(gone)
            for layer in channels.layers():
                written[layer.outputs] = found.constant[layer.outputs]
            return (any_of_group(groups, written) | all_of_group(groups, gone)) & ~any_of_group(groups, protected)
        gone = all_of_group(groups, gone & ~protected)
        # A constant kept by its group is nonzero for later layers, so repeat without treating it as droppable.
        stays = droppable & found.constant & (observed.peak != 0) & ~gone
        if not bool(stays.any()):
            return gone
        droppable &= ~stays


def foldable(channels: ChannelGraph, model: nn.Module, observed: Observed) -> Tensor:
    """Returns (ids,) bool: constants that every layer which reads them can take into its bias.

    Such a constant is the same at every pixel, also at the borders of what the layer reads, and each time that the
    layer runs.
    """
    can = observed.flat.clone()
    first: dict[tuple[str, str], Tensor] = {}
    for layer in channels.layers():
        if not _takes_constants(layer, model.get_submodule(layer.name)):
            can[layer.inputs] = False
        before = first.setdefault((layer.name, layer.part), layer.inputs)
        other = observed.mean[before] != observed.mean[layer.inputs]
        can[before[other]] = can[layer.inputs[other]] = False
    return can


def _takes_constants(layer: MixingLayer, module: Any) -> bool:
    """Says whether a constant input adds a constant to the output; zero padding would change it at the borders."""
    if isinstance(module, nn.Linear):
        return True
    plain = isinstance(module, CONVS) and not layer.part and getattr(module, "pointwise", None) is None
    # Subclasses such as FixedConv2dSame pad in a forward of their own.
    if not plain or type(module).forward not in _PLAIN_FORWARDS:
        return False
    unpadded = module.padding == "valid" if isinstance(module.padding, str) else not any(module.padding)
    return unpadded or module.padding_mode != "zeros"


def keep_enough(channels: ChannelGraph, groups: Tensor, gone: Tensor, *, min_channels: int, round_to: int) -> Tensor:
    """Takes groups back until every layer and every Parameter keeps enough; returns what still goes, (ids,) bool.

    A channel that can go may always stay. (There is one exception: a dropped constant that stays as a factor makes its
    product nonzero, and the check of the pruned model would find that.)

    Args:
        channels: the graph.
        groups: its `tied_groups()`.
        gone: (ids,) bool, what can go.
        min_channels: every layer keeps at least so many inputs and outputs; a Parameter keeps one number.
        round_to: a layer of one group keeps a multiple of so many.
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


def all_of_group(groups: Tensor, flags: Tensor) -> Tensor:
    """Returns, for each id, whether all ids of its tied group have the flag."""
    return torch.ones_like(flags).scatter_reduce(0, groups, flags, "amin")[groups]


def any_of_group(groups: Tensor, flags: Tensor) -> Tensor:
    """Returns, for each id, whether any id of its tied group has the flag."""
    return torch.zeros_like(flags).scatter_reduce(0, groups, flags, "amax")[groups]
