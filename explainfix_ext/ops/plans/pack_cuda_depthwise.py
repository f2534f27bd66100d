"""Lays the filters of a depthwise bank out as the depthwise CUDA kernel reads them: `packed`, float32, channels last.

    separable      [2][K][channels]: each filter as a column times a row, where K >= 5 and all filters are such
    else           [K][K][channels]

A separable filter costs a thread 2 K multiply-adds for an output instead of K^2; 3x3 is bound by bandwidth either way.
csrc/cuda/launch/depthwise.cu hands it to the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

SEPARABLE_FROM = 5  # K; csrc/shared/packed_layout.h has the same number


def pack_depthwise(weight: Tensor) -> Tensor:
    """Makes the `packed` argument of the depthwise plan on CUDA, on weight's device.

    Args:
        weight: (channels, 1, K, K), of a bank in float64.
    """
    device, weight = weight.device, weight[:, 0].double().cpu()
    if weight.shape[1] >= SEPARABLE_FROM:
        left, sizes, right = torch.linalg.svd(weight)
        if (sizes[:, 1:] <= 1e-9 * sizes[:, :1]).all():
            filters = torch.stack([sizes[:, :1] * left[:, :, 0], right[:, 0]])  # (2, channels, K)
            return filters.transpose(1, 2).float().contiguous().to(device)
    return weight.permute(1, 2, 0).float().contiguous().to(device)
