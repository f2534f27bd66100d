"""ChannelGraph: what happens to every channel of a network, as data.

Each channel of each value has an id, a number. Relations say how values follow from one another; ties say which
channels can only go together; protection says which must stay, and why. No tensor of the network is in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """Channels mixed by weights: a convolution, a transposed one, a linear layer.

    Attributes:
        name: of the module; `part` is "pointwise" for the learned 1x1 inside a FixedConv2d, else "".
        inputs, outputs: ids, (I,) and (O,), in the order of the weight's axes.
    """

    name: str
    inputs: Tensor
    outputs: Tensor
    groups: int = 1
    part: str = ""


@dataclass(frozen=True)
class Map:
    """Each output channel is a function of one channel of each input: an activation, a sum, a norm, a pool.

    Attributes:
        inputs: ids of each operand, (n,) each; `output`: (n,) new ids.
        product: where one factor is zero, the output is.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    product: bool = False


@dataclass(frozen=True)
class PerChannel:
    """Parameters and buffers of which each channel has its own: those of a norm (`name` is a module's), or one
    Parameter (`axis` is the channels')."""

    name: str
    ids: Tensor
    axis: int | None = None


@dataclass
class ChannelGraph:
    """Relations in the order in which the network computes.

    Attributes:
        count: ids given so far, 0 to count - 1.
        ties: pairs (2, n) of ids that go together or stay together.
        protected: (ids, reason) of channels that must stay.
        values: name of each fx node -> (axis of the channels, ids along it).
        constant: ids of Parameters used as operands, which depend on no input.
    """

    relations: list[Layer | Map] = field(default_factory=list)
    per_channel: list[PerChannel] = field(default_factory=list)
    ties: list[Tensor] = field(default_factory=list)
    protected: list[tuple[Tensor, str]] = field(default_factory=list)
    values: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    constant: list[Tensor] = field(default_factory=list)
    count: int = 0

    def fresh(self, n: int) -> Tensor:
        self.count += n
        return torch.arange(self.count - n, self.count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """a[k] with b[k], which broadcast."""
        self.ties.append(torch.stack([t.reshape(-1) for t in torch.broadcast_tensors(a, b)]))

    def protect(self, ids: Tensor, reason: str) -> None:
        self.protected.append((ids.unique(), reason))

    def must_stay(self) -> Tensor:
        """(count,) bool: the ids that are protected."""
        flags = torch.zeros(self.count, dtype=torch.bool)
        for ids, _ in self.protected:
            flags[ids] = True
        return flags

    def layers(self) -> list[Layer]:
        return [relation for relation in self.relations if isinstance(relation, Layer)]

    def tied_groups(self) -> Tensor:
        """(count,) for each id the smallest id that it is tied to, over any number of ties."""
        return components(self.count, self.ties)

    def protection(self, groups: Tensor) -> dict[int, str]:
        """Tied group -> why it must stay."""
        reasons: dict[int, str] = {}
        for ids, reason in self.protected:
            for group in groups[ids].unique().tolist():
                reasons.setdefault(group, reason)
        return reasons


def components(n: int, edges: list[Tensor]) -> Tensor:
    """Connected components of n nodes under edges (2, m): (n,) each node's smallest fellow.

    Labels hook onto the smaller of two, then jump to their label's label: logarithmic rounds of vector operations.
    """
    label = torch.arange(n)
    if not edges:
        return label
    pairs = torch.cat(edges, 1)
    while True:
        ends = label[pairs]
        low = ends.amin(0)
        if bool((ends == low).all()):
            return label
        for end in ends:
            label.scatter_reduce_(0, end, low, "amin")
        while not torch.equal(jumped := label[label], label):
            label = jumped


def first_of(labels: Tensor) -> Tensor:
    """(n,) for each position the first that has the same label; labels run from 0."""
    n = len(labels)
    return torch.full((n,), n).scatter_reduce(0, labels, torch.arange(n), "amin")[labels]


def in_groups(layer: Layer) -> tuple[Tensor, Tensor]:
    """Input and output ids by group: (groups, I/groups), (groups, O/groups)."""
    return layer.inputs.reshape(layer.groups, -1), layer.outputs.reshape(layer.groups, -1)
