"""Figures that are drawn into files, not on a screen. matplotlib is optional, and imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Makes an empty matplotlib Figure of `width` x `height` inches.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError('a picture needs matplotlib: pip install "explainfix_ext[demo]"') from None
    return Figure(figsize=(width, height), layout="constrained", dpi=120)
