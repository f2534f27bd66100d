"""Defines `explainfix bench`: its options and what it prints. commands/benchmarks/ measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from .options import HOW, OUTPUT, Json

if TYPE_CHECKING:
    from explainfix_ext.commands.benchmarks.cases import Case

_WHAT = "What to measure"  # a group of options in the help


def bench(
    context: typer.Context,
    cases: Annotated[
        str, Option(metavar="GLOB,...", rich_help_panel=_WHAT, help="Cases to measure, by name; --list shows all.")
    ] = "*",
    kind: Annotated[str, Option(metavar="KIND", rich_help_panel=_WHAT, help="layer, model or all.")] = "all",
    listing: Annotated[
        bool, Option("--list", rich_help_panel=_WHAT, help="List the cases, and why each is there; measure nothing.")
    ] = False,
    quick: Annotated[
        bool,
        Option("--quick", rich_help_panel=HOW, help="Small inputs, 3 rounds: shows that it runs, not how fast."),
    ] = False,
    rounds: Annotated[int, Option(metavar="N", rich_help_panel=HOW, help="How often each computation is timed.")] = 15,
    threads: Annotated[
        str | None,
        Option(metavar="N,...", rich_help_panel=HOW, help="Numbers of threads; default: 1,2 if there are two cores."),
    ] = None,
    isa: Annotated[
        str | None,
        Option(metavar="ISA", rich_help_panel=HOW, help="avx512, avx2 or plain, for both; default: the best."),
    ] = None,
    out: Annotated[
        Path | None,
        Option(metavar="FILE.json", rich_help_panel=OUTPUT, help="Write all numbers there, and a picture, FILE.png."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time our kernels on this CPU beside torch: layers and networks.
    You get tables of times and ratios; each result is checked against float64 first. All cases take a quarter of an
    hour or more.
    """
    from explainfix_ext._support.files import check_writable
    from explainfix_ext._support.pictures import check_drawable
    from explainfix_ext.commands.benchmarks import jobs, report
    from explainfix_ext.commands.benchmarks.cases import select
    from explainfix_ext.commands.benchmarks.isa import use_isa
    from explainfix_ext.commands.benchmarks.picture import plot_ratios

    from .progress import console

    chosen, counts = select(cases, kind), jobs.parse_threads(threads)
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
    found = _measure(chosen, counts, jobs.QUICK_ROUNDS if quick else rounds, quick, in_use, out, as_json)
    if out is not None:
        plot_ratios(found, out.with_suffix(".png"))
    if as_json:
        print(json.dumps(found))
        return
    screen = console()
    for table in report.tables(found["rows"], wide=screen.width >= 110):
        screen.print(table)
    if out is not None:
        print(f"all numbers: {out}\npicture: {out.with_suffix('.png')}")


def _measure(
    cases: Sequence[Case], threads: Sequence[int], rounds: int, quick: bool, isa: str, out: Path | None, as_json: bool
) -> dict[str, Any]:
    """Measures all cases; after each, writes what there is so far to `out`."""
    from explainfix_ext._support.files import write_atomic
    from explainfix_ext.commands.benchmarks import jobs, peaks, report

    from .progress import working

    kept = f"what was measured is in {out}" if out is not None else "with --out, what was measured would be kept"
    with working(as_json, kept) as bar:
        bar.stage("peak of this CPU", 1)
        best = peaks.measure_peaks()
        todo = list(jobs.jobs(cases, threads, rounds, best, quick))
        found = report.as_json([], best, isa, quick)
        bar.stage("", len(todo))
        for name, measure in todo:
            bar.rename(name)
            found["rows"] += measure()
            bar.step()
            if out is not None:
                write_atomic(out, lambda file: file.write(report.as_text(found).encode()))
    return found
