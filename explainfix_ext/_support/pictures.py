"""This module makes matplotlib figures for files and notebooks, without a screen. matplotlib is imported on use."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, dpi: int = 120) -> Figure:
    """Makes an empty matplotlib Figure of `width` x `height` inches, with `dpi` pixels an inch.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError('a picture needs matplotlib: pip install "explainfix_ext[demo]"') from None
    figure = Figure(figsize=(width, height), layout="constrained", dpi=dpi)
    # A notebook shows what has this method; a plain Figure only after `%matplotlib inline`.
    setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010 (mypy knows no such attribute)
    return figure


def _png(figure: Figure) -> bytes:
    figure.savefig(file := io.BytesIO(), format="png")
    return file.getvalue()


def check_drawable() -> None:
    """Raises ValueError if matplotlib is missing: work whose last step is a picture asks this first."""
    new_figure(1, 1)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure into an image file, whole or not at all."""
    write_atomic(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png"))
