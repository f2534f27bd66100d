"""This module draws what a network says of images: bars of probabilities, or masks beside the true ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from explainfix_ext._support.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BARS = 10  # at most; of more classes the likeliest
_SIDE = 1.2  # inches: the longer side of an image
_AGREEMENT = {  # what a pixel is -> its colour; distinct for the colour-blind, and in grey
    "both": (0.20, 0.45, 0.75),
    "only true": (0.95, 0.65, 0.15),
    "only predicted": (0.75, 0.10, 0.15),
}


def plot_predictions(
    images: Tensor, shares: Tensor, targets: Tensor, labels: Sequence[str], *, per_row: int = 4
) -> Figure:
    """Draws each image with a bar for the probability of each class; true ones are dark, unknown ones hatched.

    Args:
        images: (N, C, H, W), from 0 (black) to 1 (white); or signals (N, C, L), which are drawn as lines.
        shares: (N, classes) probabilities.
        targets: (N, classes) 1, 0, or NaN if that is not known.
        labels: names of the classes.
        per_row: how many images stand in a row.

    Returns:
        A Figure.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, panels = _panels(images, 2, per_row)
    for image, share, target, (left, right) in zip(images, shares, targets, panels, strict=True):
        if image.ndim == 2:
            left.plot(image.T.numpy(), linewidth=0.8)
        else:
            left.imshow(_picture(image), cmap="gray", vmin=0, vmax=1)
        likeliest = share.argsort(descending=True, stable=True)[:_BARS].sort().values
        names, values = [labels[k] for k in likeliest.tolist()], share[likeliest].tolist()
        right.set_axis_on()
        bars = right.barh(range(len(names)), values, height=0.8)
        for bar, true in zip(bars, target[likeliest].tolist(), strict=True):
            bar.set(color="tab:blue" if true == 1 else "0.75", hatch="///" if math.isnan(true) else "")
        right.set(xlim=(0, 1), xticks=[0, 1], ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
        right.set_yticklabels([name[:18] for name in names])
        right.tick_params(labelsize=5, length=2, pad=1)
    return figure


def plot_masks(images: Tensor, shares: Tensor, masks: Tensor, *, per_row: int = 2) -> Figure:
    """Draws each image, the probability of foreground, and where a probability above 0.5 agrees with the true mask.

    Args:
        images: (N, C, H, W), from 0 (black) to 1 (white).
        shares: (N, H, W) probabilities.
        masks: (N, H, W) 0 or 1.
        per_row: how many images stand in a row.

    Returns:
        A Figure, with a legend of the colours.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure, panels = _panels(images, 3, per_row)
    from matplotlib.patches import Patch

    for n, (image, share, mask, axes) in enumerate(zip(images, shares, masks, panels, strict=True)):
        axes[0].imshow(_picture(image), cmap="gray", vmin=0, vmax=1)
        axes[1].imshow(share.numpy(), cmap="gray", vmin=0, vmax=1)
        axes[2].imshow(agreement(share, mask))
        for ax, title in zip(axes, ("image", "probability", "agreement"), strict=True):
            ax.set_title(title if n < per_row else "", fontsize=7, pad=2)
    handles = [Patch(color=colour, label=name) for name, colour in _AGREEMENT.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7, frameon=False)
    return figure


def agreement(share: Tensor, mask: Tensor) -> np.ndarray:
    """Returns colours (H, W, 3) for pixels that are foreground in both, or in one alone; others are white."""
    said, true = (share > 0.5).numpy(), (mask > 0.5).numpy()
    colours = np.ones((*said.shape, 3))
    for where, colour in zip((said & true, true & ~said, said & ~true), _AGREEMENT.values(), strict=True):
        colours[where] = colour
    return colours


def _panels(images: Tensor, each: int, per_row: int) -> tuple[Figure, Iterator[Any]]:
    """Makes a figure with `each` axes for each image, without ticks, and yields those of an image at a time."""
    count, (height, width) = len(images), images.shape[2:] if images.ndim == 4 else (3, 4)
    per_row = min(per_row, count)
    rows, scale = math.ceil(count / per_row), _SIDE / max(height, width)
    figure = new_figure(per_row * each * (width * scale + 0.1), rows * (height * scale + 0.25) + 0.2, 150)
    grid = figure.subplots(rows, per_row * each, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, (grid[n // per_row, n % per_row * each :][:each] for n in range(count))


def _picture(image: Tensor) -> np.ndarray:
    """Returns an image (C, H, W) as matplotlib takes it: three channels in colour, others by their mean in grey."""
    return (image.permute(1, 2, 0) if len(image) == 3 else image.mean(0)).clamp(0, 1).numpy()
