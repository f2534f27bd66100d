"""plot_maps draws images beside maps of what speaks for and against an answer in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from explainfix_ext._support.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE = 1.3  # inches: the longer side of an image


def plot_maps(
    images: Tensor, maps: Mapping[str, Tensor], *, labels: Sequence[str] = (), per_row: int = 1, side: float = _SIDE
) -> Figure:
    """Draws each image in grey, and its maps to the right of it: red is positive, blue negative, white zero.

    All maps of an image have one scale, so that they can be compared: its full colours are for the absolute value that
    one pixel in a hundred exceeds.

    Args:
        images: (N, H, W); or signals (N, L), drawn as bands of colour.
        maps: title -> of the same shape.
        labels: what each image is, drawn above it.
        per_row: how many images, with their maps, stand in a row.
        side: of an image, in inches.

    Returns:
        A Figure.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if images.ndim == 2:  # signals: pictures of one row, drawn as bands of colour
        images, maps = _as_bands(images), {title: _as_bands(found) for title, found in maps.items()}
    count, height, width = images.shape
    per_row, panels = min(per_row, count), 1 + len(maps)
    rows, columns = math.ceil(count / per_row), per_row * panels
    scale = side / max(height, width)
    figure = new_figure(columns * (width * scale + 0.05), rows * (height * scale + 0.25), 150)
    grid = figure.subplots(rows, per_row * panels, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for n in range(count):
        axes = grid[n // per_row, n % per_row * panels :]
        axes[0].imshow(images[n].detach().cpu().float().numpy(), cmap="gray")
        axes[0].set_title(labels[n] if labels else f"image {n}", fontsize=7, pad=2)
        limit = float(torch.stack([found[n] for found in maps.values()]).abs().float().quantile(0.99)) or 1
        for k, (title, found) in enumerate(maps.items(), 1):
            axes[k].imshow(found[n].detach().cpu().float().numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes[k].set_title(title if n < per_row else "", fontsize=7, pad=2)
    return figure


def _as_bands(signals: Tensor) -> Tensor:
    """Repeats signals (N, L) to bands a quarter as high as they are long."""
    return signals[:, None].expand(-1, max(1, signals.shape[1] // 4), -1)
