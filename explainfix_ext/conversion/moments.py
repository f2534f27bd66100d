"""Moments add up what a closed form needs of many rows of numbers, so that the rows need not be kept."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Moments are the mean and covariance of rows of `size` numbers, in float64 on the CPU."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Adds rows (n, size)."""
        rows = rows.detach().cpu().double()
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    @property
    def mean(self) -> Tensor:
        """Returns the mean (size,)."""
        return self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Returns the covariance (size, size), the mean of products rather than an unbiased estimate."""
        return self._products / self.count - torch.outer(self.mean, self.mean)
