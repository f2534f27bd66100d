"""Measures convolutions of wide images beside torch's: is the cost linear in pixels, and is plan "auto" ever slower?

Run: python bench/wide.py [--threads 1] [--rounds 5] [--widths 256 1024 ...] [--channels 1 16 64] [--out FILE.json]

Prints, for each case, nanoseconds a pixel and channel of the index kernel, of plan "auto" and of torch's convolution,
at each width with the same number of rows. `growth` is what a pixel of the widest image costs the kernel over one of
the narrowest: about 1 where cost is linear. `ratio` is torch's time over that of "auto", below 1 where torch is faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext._support.machine import hardware, versions
from explainfix_ext._support.timing import interleaved, ratio, using_threads
from explainfix_ext.ops import fixed_conv2d as ops
from explainfix_ext.ops.plans.plan import make_plan

RESULTS = Path(__file__).resolve().parent / "results"
WIDTHS = [256, 512, 1024, 2048, 4096, 8192, 16384]
ROWS = {1: 256, 16: 64, 64: 16}  # by channels
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PLANS = ("index", "auto")


def check(x: Tensor, y: Tensor, weight: Tensor, stride: int) -> None:
    """Compares the last columns with float64.

    Raises:
        FloatingPointError: they are something else.
    """
    columns = min(128, x.shape[3]) // 2 * 2  # an even number leaves a stride of 2 in step
    expected = F.conv2d(x[..., -columns:].double(), weight.double(), stride=stride, padding=weight.shape[2] // 2)
    inner = expected.shape[3] // 2
    error = ((y[..., -inner:].double() - expected[..., -inner:]).norm() / expected[..., -inner:].norm()).item()
    if not error <= TOLERANCE[x.dtype]:
        raise FloatingPointError(f"{list(x.shape)} {x.dtype}: relative error {error:.1e}")


def measure(x: Tensor, bank: efx.FilterBank, stride: int, rounds: int) -> dict[str, Any]:
    """Returns nanoseconds a pixel and channel of the kernel, of "auto" and of torch, and torch's time over "auto"'s."""
    kernel, weight = bank.kernel_size[0], bank.weight(x.dtype)
    geometry = ([stride] * 2, [kernel // 2] * 2, [1, 1], 1)
    if not x.is_contiguous():
        weight = weight.contiguous(memory_format=torch.channels_last)

    def ours(name: str) -> Callable[[], Tensor]:
        plan = make_plan(bank, x.dtype, stride=(stride, stride), force=name)
        filters = (bank.basis, bank.steering, plan.packed if plan.name == "index" else weight)
        return lambda: ops.fixed_conv2d(x, *filters, None, *geometry, bank.scale, plan.code)

    calls = {name: ours(name) for name in PLANS}
    calls["torch"] = lambda: F.conv2d(x, weight, None, *geometry)
    for call in calls.values():
        check(x, call(), weight, stride)
    timings = interleaved(calls, rounds)
    return {
        **{name: round(timings[name].median * 1e9 / x.numel(), 3) for name in calls},
        "ratio": ratio(timings, "torch", "auto"),
    }


def measure_case(
    channels: int, dtype: torch.dtype, layout: str, kernel: int, stride: int, widths: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Measures one case at all widths. A row of the report."""
    bank = efx.make_bank("dct2", channels, channels, kernel, seed=0)
    rows = ROWS.get(channels, max(16, 256 // channels))
    generator, found = torch.Generator().manual_seed(0), {}
    for width in widths:
        x = torch.randn(1, channels, rows, width, generator=generator).to(dtype)
        found[width] = measure(x.contiguous(memory_format=LAYOUTS[layout]), bank, stride, rounds)
    return {
        "channels": channels,
        "rows": rows,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": layout,
        "kernel": kernel,
        "stride": stride,
        "plan": make_plan(bank, dtype, stride=(stride, stride)).name,
        "growth": round(found[widths[-1]]["index"] / found[widths[0]]["index"], 2),
        "widths": found,
    }


def line_of(row: dict[str, Any]) -> str:
    """The row as a line of text."""
    case = (
        f"{row['channels']:>3} {row['dtype']:<8} {row['layout']:<13} {row['kernel']}x{row['kernel']} / {row['stride']}"
    )
    cells = (
        f"{at['index']:6.2f} {at['auto']:6.2f} {at['torch']:6.2f} {at['ratio']['median']:5.2f}"
        for at in row["widths"].values()
    )
    return f"{case}  growth {row['growth']:4.2f} | " + " | ".join(cells)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--channels", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--out", type=Path, default=RESULTS / "wide_cpu.json")
    args = parser.parse_args(argv)
    print("index, auto, torch: ns a pixel and channel; torch / auto; at widths", *args.widths)
    rows = []
    cases = itertools.product(args.channels, TOLERANCE, LAYOUTS, (3, 7), (1, 2))
    with torch.no_grad(), using_threads(args.threads):
        for channels, dtype, layout, kernel, stride in cases:
            if channels > 1 or layout == "NCHW":  # one channel lies the same in both
                rows.append(measure_case(channels, dtype, layout, kernel, stride, args.widths, args.rounds))
                print(line_of(rows[-1]), flush=True)
    about = {"hardware": hardware(torch.device("cpu")), "versions": versions(), "threads": args.threads}
    about |= {"unit": "nanoseconds a pixel and channel", "ratio": "torch / auto"}
    args.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
