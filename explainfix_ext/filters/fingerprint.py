"""A fingerprint tells a bank's filters from others; checkpoints have it, so that damage and other versions are noticed.

Bits of floating filters differ between machines (libm, LAPACK), by about 1e-7 of their norm. A projection on fixed
random signs tells other filters from the same ones rounded otherwise, which a hash of the bits cannot.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .random_streams import Stream


def fingerprint_of(weight: Tensor, index: Tensor | None) -> dict[str, Any]:
    """Returns shape, norm and four random projections of `weight` (O, I/groups, kh, kw) float64 on the CPU, and a hash
    of the bank's index, if it has one."""
    filters, k2 = math.prod(weight.shape[:2]), math.prod(weight.shape[2:])
    flat = weight.reshape(filters, k2)
    stream = Stream(0, "fingerprint")
    # Signs factor into filter x pixel: drawing one for each number would cost more than making the filters.
    rows = torch.from_numpy(np.sign(stream.uniform(4, filters) - 0.5))
    cols = torch.from_numpy(np.sign(stream.uniform(4, k2) - 0.5))
    projections = torch.einsum("pn,nk,pk->p", rows, flat, cols)
    mark: dict[str, Any] = {"shape": list(weight.shape), "norm": flat.norm().item()}
    mark["projections"] = projections.tolist()
    if index is not None:
        mark["index"] = hashlib.sha256(index.cpu().numpy().tobytes()).hexdigest()
    return mark


def same_filters(a: dict[str, Any], b: dict[str, Any], tolerance: float = 1e-5) -> bool:
    """Tells whether two fingerprints belong to the same filters, to `tolerance` of their norm."""
    if a["shape"] != b["shape"] or a.get("index") != b.get("index"):
        return False
    pairs = zip([a["norm"], *a["projections"]], [b["norm"], *b["projections"]], strict=True)
    return all(abs(p - q) <= tolerance * max(a["norm"], 1e-30) for p, q in pairs)
