"""Measures where the CUDA kernels overtake the dense plan, for explainfix_ext/ops/plans/crossovers.py.

    python bench/tune_cuda.py [--only low_rank] [--batch 64] [--rounds 7] [--out FILE.json]

For each kernel and geometry: the dense plan's time over the kernel's, [forward, input gradient], in NCHW and in
channels_last (CUDA graphs, events, interleaved medians, inputs in turn as bench_cuda_conv.py has them); below 1 the
dense plan is faster. Each is checked against float64 first. Rows go to bench/results/tune_cuda_<card>.json, written
anew after each. A threshold is right if what it turns away is below about 1.05 and what it lets in is not below 0.95,
in the worse of the two layouts. About ten minutes; `--only` splits them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from gpu.conv import compared, our_functions
from gpu.device import LEAST_SECONDS, NO_GPU
from gpu.report import about_gpu, slug
from tune_cpu import bank_of

from explainfix_ext.commands.benchmarks.cases import LayerCase
from explainfix_ext.commands.benchmarks.conv import DIRECTIONS
from explainfix_ext.ops.plans.plan import make_plan

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = {32: 112, 64: 56, 128: 28, 256: 14, 512: 7, 96: 56, 480: 14}  # image side by channels
LAYOUTS = {"nchw": "", "nhwc": " channels_last"}

HALF, SINGLE, TF32 = (torch.bfloat16, False), (torch.float32, False), (torch.float32, True)
WIDTHS = (32, 64, 128, 256, 512)
# Products of (K, stride, channels, (dtype, is TF32 allowed), rank or density).
GRIDS = {
    "low_rank": [
        ((3,), (1, 2), WIDTHS, (HALF,), (2, 3, 4, 6)),
        ((3,), (1,), (64, 128, 256), (SINGLE, TF32), (2, 4, 6)),
        ((5,), (1, 2), (64, 128, 256), (HALF,), (4, 8, 12)),
        ((7,), (1,), (64, 128), (HALF,), (4, 12, 20)),
    ],
    "pca": [((3, 5), (1,), (64, 128, 256), (HALF,), (2, 4, 6))],
    "index": [
        ((3,), (1,), WIDTHS[1:], (HALF, SINGLE), (1.0, 0.3, 0.1, 0.03, 0.01)),
        ((3,), (1,), (128, 256), (TF32,), (0.3, 0.1, 0.01)),
        ((3,), (2,), (128, 256), (HALF,), (0.1, 0.01)),
        ((5, 7), (1,), (128, 256), (HALF,), (0.3, 0.1, 0.01)),
    ],
    "depthwise": [((3, 5, 7), (1, 2), (96, 480), (HALF, SINGLE), (1.0,))],
}


def cases(only: str) -> Iterator[tuple]:
    """(kernel, K, stride, channels, (dtype, tf32), rank or density)"""
    for kernel, grid in GRIDS.items():
        if only in ("all", kernel):
            for parts in grid:
                yield from ((kernel, *case) for case in itertools.product(*parts))


def measure(
    kernel: str, K: int, stride: int, channels: int, precision: tuple[torch.dtype, bool], amount: float,
    batch: int, rounds: int, device: str = "cuda", **options,
) -> dict:  # fmt: skip
    """One row. `plan` is what the kernel's plan came to: "dense" where it is not for such a geometry.

    Args:
        amount: the rank for low_rank, and pca, whose functions are not separable; else the share of nonzero filters.
        options: of `compared`.
    """
    dtype, tf32 = precision
    groups = channels if kernel == "depthwise" else 1
    case = LayerCase(kernel, "", channels, channels, SIZES[channels], K, stride, groups, batch, dtype=dtype)
    bank = bank_of(kernel, K, groups, channels // groups, amount).to(device)
    names = ("dense", "low_rank" if kernel == "pca" else kernel)
    dense, plan = (make_plan(bank, dtype, stride=(stride, stride), groups=groups, force=name) for name in names)
    row = {"kernel": kernel, "K": K, "stride": stride, "channels": channels, "size": case.size, "batch": batch}
    row |= {"dtype": str(dtype).removeprefix("torch."), "tf32": tf32, "amount": amount, "plan": plan.name}
    ratios: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for direction in DIRECTIONS:
        baseline, candidates = (
            our_functions(case, direction, bank, p, [who + last for last in LAYOUTS.values()])
            for who, p in (("dense", dense), ("kernel", plan))
        )
        _, timings = compared(case, direction, bank, baseline, candidates, rounds, tf32=tf32, **options)
        for layout, last in LAYOUTS.items():
            ratios[layout].append(round(timings["dense" + last].median / timings["kernel" + last].median, 2))
    return row | ratios


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="all", choices=["all", *GRIDS])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="default: bench/results/tune_cuda_<card>.json")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.exit(2, NO_GPU)
    about = about_gpu() | {"ratio": "dense / kernel, [forward, gradient]"}
    out = arguments.out or RESULTS / f"tune_cuda_{slug(about['hardware'])}.json"
    rows = []
    for case in cases(arguments.only):
        try:
            rows.append(measure(*case, arguments.batch, arguments.rounds, least_seconds=LEAST_SECONDS / 2))
        except (RuntimeError, ArithmeticError) as error:
            rows.append({"case": str(case), "failed": str(error).splitlines()[0]})
        print(json.dumps(rows[-1]), flush=True)
        lines = ",\n".join(json.dumps(row) for row in rows)
        out.write_text(f'{{"about": {json.dumps(about)}, "rows": [\n{lines}\n]}}\n')
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
