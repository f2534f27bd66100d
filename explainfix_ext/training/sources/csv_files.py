"""Reads tables of text (CSV) as programs and spreadsheets write them; every error names the file and the line."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from explainfix_ext._support.text import listed

# The mark at the start of a file -> its encoding. That of UTF-32 begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_rows(
    file: Path, names: Sequence[str], layout: str, renamed: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a table, each as where it stands, for messages, and column -> cell.

    Args:
        file: the table.
        names: columns that it must have, each once; it may have others.
        layout: what was expected, for the message where there is no such file.
        renamed: other name of a column -> the one in `names`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no table, a column is missing or there twice, a row has another number of cells, or there are
            no rows.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} not found: {layout}")
    text = _text(file)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets write ; where a comma is in numbers
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows.fieldnames = columns = [renamed.get(name, name) for name in rows.fieldnames or []]
        for name in names:
            if columns.count(name) != 1:
                count = f"has {columns.count(name)} columns" if name in columns else "has no column"
                raise ValueError(f"{file} {count} {name!r} but {listed(columns)}")
        found = False
        for row in rows:
            where, found = f"{file}, line {rows.line_num}", True
            if None in row or None in row.values():  # how DictReader reports too many cells, and too few
                raise ValueError(f"{where}: expected {len(columns)} cells, as there are columns")
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{file}, line {rows.line_num} cannot be read ({error}): expected a table (CSV)") from None
    if not found:
        raise ValueError(f"{file} has no rows")


def _text(file: Path) -> str:
    """Reads a file of UTF-8, or of what the mark at its start says; letters that are no such are in no name we need."""
    data = file.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    text = data.decode(encoding, errors="replace")
    if "\0" in text:
        raise ValueError(f"{file} is no text in UTF-8, nor in UTF-16 with its mark: expected a table (CSV)")
    return text
