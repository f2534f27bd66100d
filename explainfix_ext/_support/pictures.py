"""This module makes matplotlib figures for files, without a screen. matplotlib is optional: it is imported on use."""

from __future__ import annotations

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
    return Figure(figsize=(width, height), layout="constrained", dpi=dpi)


def check_drawable() -> None:
    """Raises ValueError if matplotlib is missing: work whose last step is a picture asks this first."""
    new_figure(1, 1)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure into an image file, whole or not at all."""
    write_atomic(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png"))
