"""Defines `explainfix bench`: its options and what it prints. commands/benchmarks/ measures."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from typer import Option

from explainfix_ext._support.files import check_writable, write_atomic
from explainfix_ext._support.pictures import check_drawable
from explainfix_ext.commands.benchmarks.cases import Case, select
from explainfix_ext.commands.benchmarks.isa import use_isa
from explainfix_ext.commands.benchmarks.jobs import QUICK_ROUNDS, jobs, parse_threads
from explainfix_ext.commands.benchmarks.peaks import measure_peaks
from explainfix_ext.commands.benchmarks.picture import plot_ratios

from .benchmarks import report
from .options import Json
from .tables import console


def bench(
    context: typer.Context,
    cases: Annotated[str, Option(help="Names of cases to measure: globs, separated by commas.")] = "*",
    kind: Annotated[str, Option(help="Kind of cases: layer, model or all.")] = "all",
    threads: Annotated[
        str | None,
        Option(help="Numbers of threads, such as 1,2 (default: those of 1 and 2 for which there are cores)."),
    ] = None,
    rounds: Annotated[int, Option(help="How often each computation is timed.")] = 15,
    quick: Annotated[
        bool, Option("--quick", help="Take small inputs and 3 rounds: shows that it runs, not how fast.")
    ] = False,
    listing: Annotated[bool, Option("--list", help="Print the cases, and why each is there; measure nothing.")] = False,
    isa: Annotated[
        str | None, Option(help="Instruction set for both ours and torch: avx512, avx2 or plain (default: the best).")
    ] = None,
    out: Annotated[Path | None, Option(help="FILE.json to write all numbers into; FILE.png gets a picture.")] = None,
    as_json: Json = False,
) -> None:
    """Time our kernels on this CPU: layers beside torch in its faster layout, networks beside the same ones learned.

    Each result is checked against float64 before it is timed. The full set takes a quarter of an hour or more.
    """
    chosen, counts = select(cases, kind), parse_threads(threads)
    if out is not None and out.suffix != ".json":
        raise ValueError(f"out must be a file named FILE.json, got {out}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if listing:
        names = [{"case": case.name, "kind": case.kind, "reason": case.reason} for case in chosen]
        print(json.dumps(names)) if as_json else console().print(report.case_table(chosen))
        return
    if out is not None:
        check_writable(out, out.with_suffix(".png"))
        check_drawable()
    in_use = use_isa(isa, ["-m", "explainfix_ext.cli", *context.obj])
    found = _bench(chosen, counts, QUICK_ROUNDS if quick else rounds, quick, in_use, out)
    if out is not None:
        plot_ratios(found, out.with_suffix(".png"))
    if as_json:
        print(json.dumps(found))
        return
    for table in report.tables(found["rows"]):
        console().print(table)
    if out is not None:
        print(f"all numbers: {out}\npicture: {out.with_suffix('.png')}")


def _bench(
    cases: Sequence[Case], threads: Sequence[int], rounds: int, quick: bool, isa: str, out: Path | None
) -> dict[str, Any]:
    """Measures all cases, with a progress bar on stderr; after each, writes what there is so far to `out`."""
    peaks = measure_peaks()
    todo = list(jobs(cases, threads, rounds, peaks, quick))
    found = report.as_json([], peaks, isa, quick)
    with contextlib.redirect_stdout(sys.stderr), Progress(console=console(stderr=True)) as progress:
        task = progress.add_task("", total=len(todo))
        for name, measure in todo:
            progress.update(task, description=name)
            found["rows"] += measure()
            progress.advance(task)
            if out is not None:
                write_atomic(out, lambda file: file.write(report.as_text(found).encode()))
    return found
