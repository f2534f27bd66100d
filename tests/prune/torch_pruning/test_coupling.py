"""What Torch-Pruning is not asked to cut: groups, splits, and layers that autograd does not reach."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.data_dependent_nets import BY_AUTOGRAD, Branches, Frozen, depends_on_data, gone, images
from support.nets import Net, check_same_state, made, state_of
from torch import Tensor, nn

import explainfix_ext as efx

pytest.importorskip("torch_pruning")


def test_groups_and_splits_are_left_whole() -> None:
    class Whole(Net):
        def __init__(self) -> None:
            super().__init__()
            self.groups = nn.Conv2d(16, 16, 3, padding=1, groups=4)
            self.second, self.tail = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 8, 3)

        def middle(self, x: Tensor) -> Tensor:
            x = F.relu(self.groups(x))
            one, two = x.chunk(2, 1)
            return torch.cat([one, self.second(two)], 1) if depends_on_data(x) else x

    report = efx.channelprune(made(Whole), images(), amount=0.5, **BY_AUTOGRAD)
    assert gone(report, "stem") == gone(report, "groups") == 0
    assert gone(report, "tail") == 4
    assert report.protected["stem"] == "groups has 4 groups, which torch_pruning leaves whole"

    class Split(Net):
        def __init__(self) -> None:
            super().__init__(tail=8)
            self.a = nn.Conv2d(16, 16, 3, padding=1)

        def middle(self, x: Tensor) -> Tensor:
            one, two = self.a(x).split(8, 1)
            return one * two.sigmoid() if depends_on_data(x) else x

    report = efx.channelprune(made(Split), images(), amount=0.5, **BY_AUTOGRAD)
    assert gone(report, "stem") == 8
    assert gone(report, "a") == 0
    assert report.protected["a"] == "a split or slice behind counts on their number"


def test_layers_that_autograd_does_not_reach_stay() -> None:
    report = efx.channelprune(made(Frozen), images(), amount=0.5, **BY_AUTOGRAD)
    assert report.plan["layers"] == {}
    assert report.protected["a"] == report.protected["b"] == "autograd does not reach it on example_inputs"
    model = made(Branches)
    before = state_of(model)
    with pytest.raises(ValueError, match="the pruned model does not run"):
        efx.channelprune(
            model, images().abs(), amount=0.5, **BY_AUTOGRAD
        )  # the random input of the verification is dark
    check_same_state(model, before)
