"""Which of given scores are the lowest."""

from __future__ import annotations

import torch

from explainfix_ext.prune.score.select import lowest, lowest_rows


def test_lowest_of_equal_scores_takes_as_many_as_asked() -> None:
    scores = {"a": torch.zeros(10, 10), "b": torch.ones(10, 10)}
    chosen = lowest(scores, 0.25, "global", 0.95)
    assert int(chosen["a"].sum()) == 50
    assert int(chosen["b"].sum()) == 0
    chosen = lowest(scores, 0.75, "global", 0.95)
    assert (int(chosen["a"].sum()), int(chosen["b"].sum())) == (95, 55)


def test_whole_channels_count_all_their_filters() -> None:
    """Of 8 x 10 and 10 x 2 filters, 30 may go: two channels of ten, then those of two until the sum would exceed it."""
    scores = {
        "wide": torch.arange(8.0)[:, None].expand(8, 10) - 100,
        "narrow": torch.arange(10.0)[:, None].expand(10, 2),
    }
    chosen = lowest_rows(scores, 0.3, "global", 0.25)
    assert chosen["wide"].any(1).tolist() == [True] * 2 + [False] * 6
    assert chosen["narrow"].any(1).tolist() == [True] * 2 + [False] * 8
    chosen = lowest_rows(scores, 0.5, "layer", 0.25)
    assert [int(chosen[name].any(1).sum()) for name in scores] == [4, 5]
    assert all(bool((mask == mask[:, :1]).all()) for mask in chosen.values())
