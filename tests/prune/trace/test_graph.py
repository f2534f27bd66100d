"""ChannelGraph: ids, ties and protection."""

from __future__ import annotations

import torch

from explainfix_ext.prune.trace.graph import ChannelGraph, components


def test_components_of_random_graphs() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 7, 200):
        edges = torch.randint(0, n, (2, n), generator=generator)
        label = list(range(n))
        for _ in range(n):
            for a, b in edges.T.tolist():
                label[a] = label[b] = min(label[a], label[b])
        assert components(n, [edges]).tolist() == label


def test_ties_lead_from_group_to_group_and_protection_follows_them() -> None:
    graph = ChannelGraph()
    a, b, c = graph.fresh(3), graph.fresh(3), graph.fresh(2)
    graph.tie(a, b)
    graph.tie(b[:1], c)  # one with both
    groups = graph.tied_groups().tolist()
    assert groups == [0, 1, 2, 0, 1, 2, 0, 0]
    graph.protect(c[1:], "first")
    graph.protect(b, "second")
    assert graph.protection(graph.tied_groups()) == {0: "first", 1: "second", 2: "second"}
    assert graph.must_stay().nonzero().flatten().tolist() == [3, 4, 5, 7]  # not yet those that are tied to them
