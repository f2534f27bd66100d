"""Sums a SyncBatchNorm's statistics and gradients over the processes whose batches it normalises together (`Ranks`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from explainfix_ext.ops import passes


class Ranks:
    """Stands for the processes of a group, in one call of a SyncBatchNorm.

    What is sent has the shape and order of what torch's SyncBatchNorm sends, which runs on a rank whose batch is empty.
    """

    def __init__(self, group: Any) -> None:
        self._group = group

    def batch_norm_factors(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
        running_var: Tensor | None, share: float, eps: float,
    ) -> Tensor:  # fmt: skip
        """Computes what passes.batch_norm_factors does, from the batches of all ranks."""
        mean, invstd = passes.batch_norm_factors(x, None, None, None, None, 0.0, eps)[:2]
        count = x.numel() // x.shape[1]
        sent = torch.cat((mean, invstd, mean.new_full((1,), count)))
        received = [torch.empty_like(sent) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(received, sent, self._group)
        means, invstds, counts = torch.stack(received).split([len(mean), len(mean), 1], 1)
        variances = torch.where(counts > 0, invstds**-2 - eps, 0)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean) ** 2)).sum(0) / total
        self._part = count / total
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean, share)
            running_var.lerp_(var * (total / (total - 1).clamp_min(1)), share)
        return passes.factors_of(mean, var, weight, bias, eps)

    def mean_sums(self, sums: Tensor) -> Tensor:
        """Sums `sums` over the ranks, and scales them so that divided by this rank's count they are means over all."""
        summed = sums.clone()
        dist.all_reduce(summed, group=self._group)
        return summed * self._part


def ranks_of(group: Any) -> Ranks | None:
    """Returns the Ranks of a process group, by default the whole world; None where that is one process."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    group = group or dist.group.WORLD
    return Ranks(group) if dist.get_world_size(group) > 1 else None
