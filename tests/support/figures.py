"""What tests ask of matplotlib figures."""

from __future__ import annotations

from typing import Any


def words_of(figure: Any) -> list[str]:
    """All words of a figure; drawing it finds what cannot be drawn."""
    from matplotlib.text import Text

    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]
