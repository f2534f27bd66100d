"""Makes what `explainfix bench` shows and writes: tables and JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.table import Table

from explainfix_ext._support.machine import hardware, versions

from .cases import Case
from .peaks import Peaks

Row = dict[str, Any]


def as_json(rows: Sequence[Row], peaks: Peaks, isa: str, quick: bool) -> dict[str, Any]:
    """Returns all that was measured, and where and when; in seconds and operations per second."""
    found, machine = versions(), hardware(torch.device("cpu"))
    return {
        "hardware": machine["cpu"],
        "cores": machine["cores"],
        "torch": found["torch"],
        "explainfix_ext": found["explainfix_ext"],
        "isa": isa,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "peak_fma_flops_per_thread": peaks.fma_flops,
        "rows": list(rows),
    }


def as_text(report: dict[str, Any]) -> str:
    """Returns the JSON for a file: one line per row, so that git shows which rows changed."""
    head = json.dumps({name: value for name, value in report.items() if name != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in report["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n'


_WIDE_ONLY = ("plan", "NHWC", "of peak", "copies", "error")


def case_table(cases: Sequence[Case]) -> Table:
    """Returns the table of cases that --list prints."""
    table = Table("case", "kind", "why", box=box.SIMPLE, pad_edge=False)
    for case in cases:
        table.add_row(case.name, case.kind, case.reason)
    return table


def layer_table(rows: Sequence[Row], threads: int, wide: bool = True) -> Table:
    """Returns a table with one line per case and direction.

    "faster" is torch's time over ours, NCHW in and out; "NHWC" is the same with ours in channels_last. "copies" is
    our time over that of a copy of the input. Not `wide`, it has only the columns that fit a terminal of 80.
    """
    numbers = ("ours", "torch", "faster", "NHWC", "of peak", "copies", "error")
    table = _table(f"convolutions, threads: {threads}; torch in its faster layout", ("case", "task", "plan"), numbers)
    for row in rows:
        seconds = row["seconds"]
        torch_seconds = seconds["torch channels_last" if row["torch_layout"] == "channels_last" else "torch"]
        table.add_row(
            row["case"], row["task"], row["plan"], _ms(seconds["ours"]), _ms(torch_seconds), _times(row["ratio"]),
            _times(row["ratio_channels_last"]), f"{row['peak_fraction']:.0%} {row['operation']}",
            f"{row['copies']['median']:.1f}", f"{row['error']['ours']:.0e}",
        )  # fmt: skip
    if not wide:
        table.columns = [column for column in table.columns if column.header not in _WIDE_ONLY]
    return table


def model_table(rows: Sequence[Row], threads: int, wide: bool = True) -> Table:
    """Returns a table with one line per case and mode. "faster" is the learned network's time over this one's."""
    numbers = ("time", "faster", "quartiles", "error")
    table = _table(f"whole networks, threads: {threads}", ("case", "network"), numbers)
    for row in rows:
        low, high = row["ratio"]["quartiles"]
        table.add_row(
            row["case"], row["mode"], _ms(row["seconds"]), _times(row["ratio"]), f"{low:.2f}-{high:.2f}",
            f"{row['error']:.0e}",
        )  # fmt: skip
    return table


def tables(rows: Sequence[Row], wide: bool = True) -> list[Table]:
    """Returns one table for each kind and number of threads, `wide` or of fewer columns."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["threads"]), []).append(row)
    make = {"layer": layer_table, "model": model_table}
    return [make[kind](those, threads, wide) for (kind, threads), those in sorted(groups.items())]


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _ms(seconds: Row) -> str:
    return f"{1e3 * seconds['median']:.3g} ms"


def _times(ratio: Row) -> str:
    return f"{ratio['median']:.2f}x"
