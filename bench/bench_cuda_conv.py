"""Our convolutions beside torch's on a GPU, layer by layer: checked against float64, then timed.

    python bench/bench_cuda_conv.py [--cases 'depthwise-*'] [--rounds 15] [--quick] [--out FILE.json]

First the ceilings of the card: bandwidth of a copy, rate of a matrix product. Then forward and input gradient of each
case (`--list` names them): torch in NCHW and channels_last with cudnn.benchmark, ours in both; float32 with TF32 off
and on. Calls run from CUDA graphs, on more inputs in turn than L2 holds; turns are interleaved and timed with events;
medians. The file is written anew after each row, so that what there is stays if this is stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from gpu.cases import CUDA_CASES
from gpu.ceilings import measure_ceilings
from gpu.conv import measure_cuda_layer
from gpu.device import NO_GPU
from gpu.report import (
    LAYER_HEAD,
    about_gpu,
    layer_cells,
    layer_report,
    rich_table,
    slug,
)
from rich.console import Console

from explainfix_ext.commands.benchmarks.cases import LayerCase, matching
from explainfix_ext.commands.benchmarks.conv import DIRECTIONS
from explainfix_ext.commands.benchmarks.report import as_text, case_table

RESULTS = Path(__file__).resolve().parent / "results"


def jobs(cases: Sequence[LayerCase]) -> Iterator[tuple[LayerCase, str, bool]]:
    """(case, direction, is TF32 allowed): float32 is measured with and without."""
    for case in cases:
        for tf32 in (False, True) if case.dtype == torch.float32 else (False,):
            yield from ((case, direction, tf32) for direction in DIRECTIONS)


def run(cases: Sequence[LayerCase], out: Path, quick: bool = False, **options) -> dict:
    """Measures all jobs and returns the report, which is in `out` after each of them.

    A job that fails is noted among the failures. A CUDA error that spoils the process ends the run there.

    Args:
        options: of `measure_cuda_layer`; sizes of `measure_ceilings` as `ceilings`.
    """
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False, markup=False)
    ceilings = measure_ceilings(device=options.get("device", "cuda"), **options.pop("ceilings", {}))
    rates = ", ".join(f"{name} {rate / 1e12:.1f} TFLOP/s" for name, rate in ceilings.flops.items())
    console.print(f"copy {ceilings.copy / 1e12:.2f} TB/s, {rates}")
    rows: list[dict] = []
    failures: list[dict] = []
    lost = False
    for case, direction, tf32 in jobs(cases):
        try:
            rows.append(measure_cuda_layer(case, direction, ceilings, tf32=tf32, **options))
            console.print(" | ".join(layer_cells(rows[-1])))
        except (RuntimeError, ArithmeticError, ValueError) as error:
            lost = not device_works()
            why = str(error).splitlines()[0] + ("; the device is lost, the rest was not run" if lost else "")
            failures.append({"case": case.name, "task": direction, "tf32": tf32, "why": why})
            console.print(f"FAILED: {case.name}, {direction}: {error}")
        report = layer_report(rows, failures, ceilings, quick)
        out.write_text(as_text(report))
        if lost:
            break
    if rows:
        console.print(rich_table("convolutions", LAYER_HEAD, [layer_cells(row) for row in rows]))
    return report


def device_works() -> bool:
    """After an illegal access every later call fails, too."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="*", help="globs, which commas separate")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one small image each: to see that it runs")
    parser.add_argument("--no-graph", action="store_true", help="call the kernels one by one, not from CUDA graphs")
    parser.add_argument("--list", action="store_true", help="the cases, and why they are there")
    parser.add_argument("--out", type=Path, help="default: bench/results/cuda_conv_<card>.json")
    arguments = parser.parse_args(argv)
    try:
        cases = matching(CUDA_CASES, arguments.cases)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    if arguments.list:
        return Console().print(case_table(cases))
    if not torch.cuda.is_available():
        parser.exit(2, NO_GPU)
    out = arguments.out or RESULTS / f"cuda_conv_{slug(about_gpu()['hardware'])}.json"
    options = {"least_seconds": 0.0} if arguments.quick else {}
    cases = [case.quick() for case in cases] if arguments.quick else cases
    report = run(cases, out, arguments.quick, rounds=arguments.rounds, graph=not arguments.no_graph, **options)
    print(out)
    if report["failures"]:
        parser.exit(1, f"{len(report['failures'])} failed\n")
    return None


if __name__ == "__main__":
    main()
