"""Words and tables for people: in errors, reports and on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def first_line(error: BaseException) -> str:
    """Returns the error's message without what libraries add below it; its class, where there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def unknown_name(kind: str, name: str, names: Iterable[str]) -> ValueError:
    """Makes the error for a name that is not there, with the three nearest that are."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4) or names[:8]
    return ValueError(f"unknown {kind} {name!r}; nearest: {', '.join(near)}")


def times(sizes: Iterable[int]) -> str:
    """Joins sizes as people write them: 64x3x7x7."""
    return "x".join(map(str, sizes))


def table_lines(rows: Sequence[Sequence[str]], numbers: bool = False) -> list[str]:
    """Aligns the cells of `rows`, the head first, in columns; with `numbers` all columns but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust] + [str.rjust if numbers else str.ljust] * len(widths[1:])
    lines = ["  ".join(f(cell, width) for f, cell, width in zip(align, row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in lines]
