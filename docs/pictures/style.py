"""The look that all pictures of "How it works" share: a canvas in inches, boxes, arrows, filters, and one palette.

A picture is an SVG file on a ground of its own. Its colours follow the reader's light or dark mode, and its bytes are
the same each time it is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

HERE = Path(__file__).parent
# Each colour in light mode, by which the drawing code names it, and in dark mode.
INK, GREY, PAPER, SOFT = "#20242c", "#7b8190", "#fcfcfd", "#e9ecf2"
BLUE, ORANGE, GREEN = "#2f6fc4", "#c8621b", "#2d8a57"
LIGHT_BLUE, LIGHT_ORANGE, LIGHT_GREEN = "#d5e4f8", "#fae0cb", "#d3edde"
DARK = {
    **{INK: "#e6e8ee", GREY: "#9aa1b1", PAPER: "#1c1f26", SOFT: "#2c313c"},
    **{BLUE: "#82b1f5", ORANGE: "#f0a062", GREEN: "#74cf9d"},
    **{LIGHT_BLUE: "#243d61", LIGHT_ORANGE: "#5b3a1f", LIGHT_GREEN: "#1f4a33"},
}
SETTINGS = {"svg.hashsalt": "explainfix", "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Makes a figure with one invisible pair of axes, in inches, whose y grows downwards."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), facecolor=PAPER)
        axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def write(axes: Axes, x: float, y: float, words: str, size: float = 9.5, colour: str = INK, **options: object) -> None:
    """Writes words at a place; they are centred unless `ha` says otherwise."""
    given = {"ha": "center", "va": "center", "linespacing": 1.35} | options
    with matplotlib.rc_context(SETTINGS):
        axes.text(x, y, words, fontsize=size, color=colour, **given)  # type: ignore[arg-type]


def box(
    axes: Axes, x: float, y: float, width: float, height: float, words: str = "", face: str = SOFT, edge: str = GREY,
    size: float = 9.5, dashed: bool = False,
) -> None:  # fmt: skip
    """Draws a rounded box with words in its middle; (x, y) is its upper left corner."""
    style, line = "round,pad=0,rounding_size=0.06", (0, (3, 2)) if dashed else "-"
    patch = FancyBboxPatch((x, y), width, height, style, facecolor=face, edgecolor=edge, linewidth=1, linestyle=line)
    axes.add_patch(patch)
    write(axes, x + width / 2, y + height / 2, words, size)


def arrow(
    axes: Axes, start: Sequence[float], end: Sequence[float], colour: str = GREY, head: bool = True, width: float = 1.2
) -> None:
    """Draws an arrow, or without a head a line."""
    style = {"arrowstyle": "-|>" if head else "-", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": width}
    axes.annotate("", tuple(end), tuple(start), arrowprops=style)


def square(
    axes: Axes, x: float, y: float, width: float, height: float, face: str, edge: str = PAPER, line: float = 0.8
) -> None:
    """Draws a plain rectangle, a cell of a grid."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=face, edgecolor=edge, linewidth=line))


def grid(axes: Axes, values: Sequence[Sequence[float]], x: float, y: float, cell: float, most: float = 1.0) -> None:
    """Draws a filter: a cell for each number, red above zero, blue below, white at zero; strongest at `most`."""
    colours = matplotlib.colormaps["RdBu_r"]
    for row, numbers in enumerate(values):
        for column, number in enumerate(numbers):
            face = matplotlib.colors.to_hex(colours(0.5 + 0.42 * float(number) / most))
            square(axes, x + column * cell, y + row * cell, cell, cell, face, GREY, 0.5)


def save(figure: Figure, name: str, folder: Path = HERE) -> Path:
    """Writes the picture, its colours as variables that a dark mode exchanges."""
    file = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(file, format="svg", facecolor=PAPER, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"[ \t]+$", "", file.getvalue(), flags=re.M)
    for number, colour in enumerate(DARK):
        svg = svg.replace(colour, f"var(--c{number})")

    def variables(colours: Sequence[str]) -> str:
        return "svg { " + " ".join(f"--c{number}: {colour};" for number, colour in enumerate(colours)) + " }"

    rule = f"{variables(list(DARK))} @media (prefers-color-scheme: dark) {{ {variables(list(DARK.values()))} }}"
    path = folder / f"{name}.svg"
    path.write_text(svg.replace(" <defs>", f" <style>{rule}</style>\n <defs>", 1))
    return path
