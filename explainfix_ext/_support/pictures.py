"""This module makes matplotlib figures for files, without a screen. matplotlib is optional: it is imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
