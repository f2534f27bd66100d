"""pack_hadamard: the filters of a hadamard bank as csrc/cuda/device/hadamard reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from explainfix_ext.filters.hadamard import HadamardFilters


def pack_hadamard(filters: HadamardFilters, scale: float) -> Tensor:
    """Returns, float32 in one dimension, rows (J, groups, kw, I/groups), then columns (kh, O) times the scale, from the
    last tap on. Channels come last, so that a warp reads neighbouring memory."""
    rows, columns = filters.rows[0].mT, scale * filters.columns[0].mT.flip(0)
    return torch.cat([rows.flatten(), columns.flatten()])
