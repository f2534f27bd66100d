"""Chooses the images of each epoch, for each process its own: all of them once, or some with replacement."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DistributedSampler, TensorDataset

from . import distributed


def sampler_for(dataset: TensorDataset, epoch_size: int | None, seed: int) -> DistributedSampler:
    """Returns the order of the images, which depends on seed and epoch only: it is the same for all networks.

    Args:
        epoch_size: images that an epoch draws with replacement, all processes together; None: each image once.
    """
    ranks, rank = distributed.world_size(), distributed.rank()
    if epoch_size is None:
        return DistributedSampler(dataset, ranks, rank, seed=seed, drop_last=True)
    return _Replacing(dataset, epoch_size, ranks, rank, seed)


class _Replacing(DistributedSampler):
    """Draws images with replacement, as torch's RandomSampler does, of which each process takes its share."""

    def __init__(self, dataset: TensorDataset, epoch_size: int, ranks: int, rank: int, seed: int) -> None:
        super().__init__(dataset, ranks, rank, seed=seed)
        self.count, self.num_samples = epoch_size, epoch_size // ranks

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randint(len(self.dataset), (self.count,), generator=generator)  # type: ignore[arg-type]
        return iter(drawn[self.rank :: self.num_replicas][: self.num_samples].tolist())
