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
    if not pays(columns, rows):
        geometry = (stride, padding, dilation, groups, order, stages, scale, plan)
        return reference.hadamard_conv2d(x, columns, rows, outputs, inputs, packed, bias, *geometry)
    y = None
    for row, mix, column in three_weights(columns, rows, outputs, inputs, order, stages, scale, x.dtype):
        z = F.conv2d(x, row, None, (1, stride[1]), (0, padding[1]), (1, dilation[1]), x.shape[1])
        z = F.conv2d(z, mix, None, groups=groups)
        z = F.conv2d(z, column, bias, (stride[0], 1), (padding[0], 0), (dilation[0], 1), len(column))
        y, bias = z if y is None else y + z, None
    assert y is not None  # there is a term
    return y


def pays(columns: Tensor, rows: Tensor) -> bool:
    """Tells whether three convolutions are half the work of one by the composed filters, at most."""
    terms, out_channels, kh = columns.shape
    _, chunks, groups, per_group, kw = rows.shape
    mixing = chunks * per_group * out_channels
    three = terms * (mixing + chunks * groups * per_group * kw + out_channels * kh)
    return 2 * three <= out_channels * per_group * kh * kw


def three_weights(
    columns: Tensor,
    rows: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    order: int,
    stages: int,
    scale: float,
    dtype: torch.dtype,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns the weights of the three convolutions of each term: (J I, 1, 1, kw), a horizontal filter a channel;
    (O, J I/groups, 1, 1), which mixes; (O, 1, kh, 1), a vertical filter a channel."""
    # Each input has a row for each chunk of outputs, side by side, and an output mixes those of its own chunk.
    own = outputs.long()[:, None] // order == torch.arange(rows.shape[1], device=outputs.device)
    signs = hadamard_signs(outputs, inputs, order, stages)[..., None] * own[:, None]
    mix = signs.reshape(columns.shape[1], -1, 1, 1).to(dtype)
    return [
        (
            scale * row.permute(1, 2, 0, 3).reshape(-1, 1, 1, rows.shape[4]).to(dtype),
            mix,
            column[:, None, :, None].to(dtype),
        )
        for row, column in zip(rows, columns, strict=True)
    ]
