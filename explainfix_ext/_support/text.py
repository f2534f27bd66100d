"""This module formats text for people: error messages, tables of reports, lines on the command line."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message (libraries add more below it), or its class if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def shown(value: object) -> str:
    """Returns any value as a short line for an error message, also one that is deep, long or cannot be printed."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 2, 60, 60
    try:
        text = " ".join(brief.repr(value).split())
    except ValueError:  # an integer of more digits than Python prints
        text = f"{type(value).__name__} of very many digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(names: Sequence[str]) -> str:
    """Joins names that a file gives, on one line that is not too long for an error message."""
    text = " ".join(", ".join(names[:50]).split())
    return text if len(names) <= 50 and len(text) <= 600 else f"{text[:600]}, ..."


def check_utf8(name: str, value: str) -> None:
    """Checks a name that will be written into files: a file name on the disk need not be UTF-8.

    Raises:
        ValueError: it cannot be written as UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text that can be written as UTF-8, got {value!r}: rename it") from None


def unknown_name(kind: str, name: str, names: Iterable[str]) -> ValueError:
    """Makes the ValueError for an unknown name, which lists the three known names that are nearest to it."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    if not near:
        return ValueError(f"unknown {kind} {name!r}; expected {', '.join(names[:8])}{', ...' * (len(names) > 8)}")
    return ValueError(f"unknown {kind} {name!r}; nearest: {', '.join(near)}")


def times(sizes: Iterable[int]) -> str:
    """Joins sizes as people write them, such as 64x3x7x7."""
    return "x".join(map(str, sizes))


def table_lines(rows: Sequence[Sequence[str]], numbers: bool = False) -> list[str]:
    """Aligns the cells of `rows`, the first of which is the head, in columns.

    With `numbers`, all columns but the first are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust] + [str.rjust if numbers else str.ljust] * len(widths[1:])
    lines = ["  ".join(f(cell, width) for f, cell, width in zip(align, row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]
