"""A hadamard convolution by convolutions of torch alone, which an ONNX file can hold.

Other frameworks have no fast Walsh-Hadamard transform. As a horizontal convolution, a 1x1 convolution with the signs
of H, and a vertical one, the file has about kh kw times fewer bytes than with the composed filters, and as many times
fewer multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from explainfix_ext.filters.hadamard import hadamard_signs

from . import reference


def hadamard_conv2d(
    x: Tensor,
    columns: Tensor,
    rows: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    packed: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    order: int,
    stages: int,
    scale: float,
    plan: int,
) -> Tensor:
    """Convolves as `reference.hadamard_conv2d` does; as three convolutions a term, where these are half the work."""
    terms, out_channels, kh = columns.shape
    chunks, per_group, kw = rows.shape[1], rows.shape[3], rows.shape[4]
    mixing = chunks * per_group * out_channels
    if 2 * terms * (mixing + chunks * groups * per_group * kw + out_channels * kh) > out_channels * per_group * kh * kw:
        geometry = (stride, padding, dilation, groups, order, stages, scale, plan)
        return reference.hadamard_conv2d(x, columns, rows, outputs, inputs, packed, bias, *geometry)
    # Each input has a row for each chunk of outputs, side by side, and an output mixes those of its own chunk.
    own = outputs.long()[:, None] // order == torch.arange(chunks, device=outputs.device)
    signs = hadamard_signs(outputs, inputs, order, stages)[..., None] * own[:, None]
    mix, y = signs.reshape(out_channels, -1, 1, 1).to(x.dtype), None
    for term in range(terms):
        row = scale * rows[term].permute(1, 2, 0, 3).reshape(-1, 1, 1, kw).to(x.dtype)
        column = columns[term, :, None, :, None].to(x.dtype)
        z = F.conv2d(x, row, None, (1, stride[1]), (0, padding[1]), (1, dilation[1]), groups * per_group)
        z = F.conv2d(z, mix, None, groups=groups)
        z = F.conv2d(z, column, bias, (stride[0], 1), (padding[0], 0), (dilation[0], 1), out_channels)
        y, bias = z if y is None else y + z, None
    assert y is not None  # there is a term
    return y
