"""This module holds ChannelGraph: what a network does with each of its channels, as plain data.

Every channel of every value in the network has a number, its id. Relations say which channels are computed from which,
ties say which channels can only be removed together, and protection says which must stay, and why. The graph holds no
tensor of the network. `trace/` and `torch_pruning/` build it; `cut/` and `score/` read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .numbers import Written


@dataclass(frozen=True)
class MixingLayer:
    """Relates channels that weights mix, as in a convolution, a transposed convolution or a linear layer.

    Attributes:
        name: the module's name in the model.
        inputs, outputs: ids, (I,) and (O,), in the order of the module's channels.
        groups: number of groups of the convolution.
        part: "pointwise" for the learned 1x1 inside a FixedConv2d, else "".
    """

    name: str
    inputs: Tensor
    outputs: Tensor
    groups: int = 1
    part: str = ""


@dataclass(frozen=True)
class Map:
    """Relates each output channel to one channel of each operand, as an activation, a sum, a norm or a pool does.

    Attributes:
        inputs: for each operand, the ids (n,) that the n output channels are computed from.
        output: (n,) new ids.
        product: True for a multiplication, which gives zero where one factor is zero.
        even: True if operands that are the same at every pixel give a result that is, too, at any size of the image. A
            padded mean is not even, nor is a sum over pixels.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    product: bool = False
    even: bool = True


@dataclass(frozen=True)
class PerChannel:
    """Names a tensor with one number for each channel, which is cut when channels are removed.

    Attributes:
        name: the name of a norm or PReLU, all of whose vectors are cut; with `axis`, that of a Parameter or buffer.
        ids: (n,) the channels, in order.
        axis: the Parameter's axis of channels; None for a module.
    """

    name: str
    ids: Tensor
    axis: int | None = None


@dataclass
class ChannelGraph:
    """Holds what a network does with its channels.

    Attributes:
        relations: how channels are computed, each after those that it needs.
        per_channel: tensors that have a number for each channel.
        ties: pairs (2, n) of ids that are removed together or not at all.
        protected: (ids, reason) of channels that must stay.
        values: name of each torch.fx node -> (axis of its channels, ids along that axis).
        constant: ids of Parameters that are used as operands, and so depend on no input.
        outputs: ids in the outputs of the model.
        sizes: what numbers in the model's code must count.
        fixed: attributes of modules that must keep their values, because the code also uses them otherwise.
        count: number of ids given so far; they run from 0 to count - 1.
    """

    relations: list[MixingLayer | Map] = field(default_factory=list)
    per_channel: list[PerChannel] = field(default_factory=list)
    ties: list[Tensor] = field(default_factory=list)
    protected: list[tuple[Tensor, str]] = field(default_factory=list)
    values: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    constant: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    sizes: list[Written] = field(default_factory=list)
    fixed: set[str] = field(default_factory=set)
    count: int = 0
    _merged: tuple[int, Tensor] = field(default=(0, torch.arange(0)), repr=False, compare=False)

    def fresh(self, n: int) -> Tensor:
        """Returns n ids, (n,), that were not used before."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Ties a[k] to b[k] for every k; the two broadcast."""
        self.ties.append(torch.stack([t.reshape(-1) for t in torch.broadcast_tensors(a, b)]))

    def protect(self, ids: Tensor, reason: str) -> None:
        """Keeps these channels, and with them all that they are tied to."""
        self.protected.append((ids.unique(), reason))

    def must_stay(self) -> Tensor:
        """Returns (count,) bool: the ids that are protected themselves, whatever they are tied to."""
        flags = torch.zeros(self.count, dtype=torch.bool)
        for ids, _ in self.protected:
            flags[ids] = True
        return flags

    def layers(self) -> list[MixingLayer]:
        """Returns the mixing layers in order; one that runs twice, or has a pointwise part, is there twice."""
        return [relation for relation in self.relations if isinstance(relation, MixingLayer)]

    def tied_groups(self) -> Tensor:
        """Returns (count,): for each id the smallest id that it is tied to, directly or through others.

        It goes on from the answer of before: ids and ties are added, and never taken away.
        """
        known, groups = self._merged
        groups = torch.cat([groups, torch.arange(len(groups), self.count)])
        groups = components(self.count, self.ties[known:], groups)
        self._merged = len(self.ties), groups
        return groups

    def protection(self, groups: Tensor) -> dict[int, str]:
        """Returns tied group -> the first reason why it must stay, for `groups` from `tied_groups()`."""
        reasons: dict[int, str] = {}
        for ids, reason in self.protected:
            for group in groups[ids].unique().tolist():
                reasons.setdefault(group, reason)
        return reasons


def components(n: int, edges: list[Tensor], label: Tensor | None = None) -> Tensor:
    """Finds the connected components of n nodes under edges (2, m): (n,) the smallest node of each node's component.

    Each round gives both ends of every edge the smaller of their two labels, then replaces every label by its own label
    until nothing changes. That takes a logarithmic number of rounds, each of vector operations. `label`, the answer for
    other edges, adds these.
    """
    label = torch.arange(n) if label is None else label.clone()
    if not edges:
        return label
    pairs = torch.cat(edges, 1)
    while True:
        ends = label[pairs]
        low = torch.minimum(ends[0], ends[1])
        if bool((ends == low).all()):
            return label
        for end in ends:
            label.scatter_reduce_(0, end, low, "amin")
        while not torch.equal(jumped := label[label], label):
            label = jumped


def first_of(labels: Tensor) -> Tensor:
    """Returns (n,): for each position the first position with the same label, for labels that count from 0."""
    n = len(labels)
    return torch.full((n,), n).scatter_reduce(0, labels, torch.arange(n), "amin")[labels]


def in_groups(layer: MixingLayer) -> tuple[Tensor, Tensor]:
    """Returns a layer's input and output ids by group: (groups, I/groups) and (groups, O/groups)."""
    return layer.inputs.reshape(layer.groups, -1), layer.outputs.reshape(layer.groups, -1)


def norms_after(graph: ChannelGraph) -> dict[str, str]:
    """Returns layer -> name of the norm, or PReLU, that reads the layer's own outputs."""
    names = {tuple(use.ids.tolist()): use.name for use in graph.per_channel}
    maps = [relation for relation in graph.relations if isinstance(relation, Map)]
    outputs = [(m, tuple(m.output.tolist())) for m in maps]
    by_input = {tuple(m.inputs[0].tolist()): names[output] for m, output in outputs if output in names}
    written = {layer.name: tuple(layer.outputs.tolist()) for layer in graph.layers() if not layer.part}
    return {name: by_input[ids] for name, ids in written.items() if ids in by_input}
