"""The images of an epoch: drawn anew each time, with replacement if so many are asked for, shared among processes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from explainfix_ext.training import distributed
from explainfix_ext.training.sampling import sampler_for

IMAGES = TensorDataset(torch.arange(10))


def test_an_epoch_is_all_images_once_or_so_many_with_replacement() -> None:
    once = sampler_for(IMAGES, None, seed=3)
    assert sorted(once) == list(range(10))
    drawn = sampler_for(IMAGES, 400, seed=3)
    first = list(drawn)
    assert (len(drawn), len(first)) == (400, 400)
    assert 20 < min(first.count(image) for image in range(10)) < 40
    assert list(drawn) == first
    drawn.set_epoch(1)
    assert list(drawn) != first


def test_each_process_takes_its_share_of_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(sampler_for(IMAGES, 9, seed=0))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = sampler_for(IMAGES, 9, seed=0)
        assert list(share) == whole[rank:8:2]
        assert len(share) == 4
