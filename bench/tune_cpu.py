"""Measures where the CPU kernels overtake the dense plan, for the thresholds in explainfix_ext/ops/plans/crossovers.py.

    python bench/tune_cpu.py [--isa avx512] [--threads 1] [--only index]

For each kernel and geometry: the dense plan's time over the kernel's, forward and input gradient, in NCHW and in
channels_last (interleaved medians); below 1 the dense plan is faster. Rows go to bench/results/tune_cpu_<isa>.json. A
threshold is right if what it turns away is below about 1.05 and what it lets in is not below 0.95, in the worse of the
two layouts. --isa limits torch too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import torch

import explainfix_ext as efx
from explainfix_ext._support.machine import hardware
from explainfix_ext._support.timing import interleaved
from explainfix_ext.commands.benchmarks.isa import use_isa
from explainfix_ext.ops import fixed_conv2d as ops
from explainfix_ext.ops.plans.plan import make_plan

RESULTS = Path(__file__).parent / "results"
SIZES = {1: 56, 2: 56, 4: 56, 8: 56, 16: 56, 32: 56, 64: 28, 128: 28}  # image side by channels


def cases(only: str):
    """(kernel, K, stride, groups, channels per group, dtype, density or rank)"""
    plain = [torch.float32]
    both = [torch.float32, torch.bfloat16]
    grids = {
        "index": [
            ((3,), (1, 2), (1,), (4, 8, 16, 32, 64), both, (1.0, 0.2, 0.05)),
            ((3,), (1,), (8, 32), (2, 4, 8, 16), plain, (1.0, 0.2)),
            ((5, 7), (1, 2), (1,), (8, 16, 32, 64), plain, (1.0, 0.2)),
            ((5, 7), (1,), (1,), (16, 64), [torch.bfloat16], (1.0, 0.2)),
        ],
        "low_rank": [
            ((3,), (1, 2), (1,), (8, 16, 32, 64), both, (2, 3, 4, 6, 9)),
            ((5,), (1, 2), (1,), (8, 16, 32, 64), plain, (2, 4, 8, 12, 16)),
            ((7,), (1,), (1,), (8, 16, 64), plain, (4, 16, 24)),
            ((5,), (1,), (1,), (32, 64), [torch.bfloat16], (2, 4, 8)),
            ((3,), (1,), (8,), (4, 16), plain, (2, 4)),
        ],
        "pca": [((3, 5, 7), (1,), (1,), (16, 32, 64, 128), plain, (2, 4, 6))],
        "depthwise": [((3, 5, 7), (1, 2), (96,), (1,), both, (1.0,))],
    }
    for kernel, grid in grids.items():
        if only in ("all", kernel):
            for parts in grid:
                yield from ((kernel, *case) for case in itertools.product(*parts))


def bank_of(kernel: str, K: int, groups: int, channels: int, amount: float) -> efx.FilterBank:
    total = groups * channels
    if kernel in ("index", "depthwise"):
        return efx.make_bank("dct2", total, total, K, groups=groups, seed=0, density=amount)
    basis = efx.dct_basis((K, K))[efx.frequency_order((K, K))[: int(amount)]]
    if kernel == "pca":
        basis = torch.linalg.qr(torch.randn(K * K, int(amount), dtype=torch.float64)).Q.T.reshape(-1, K, K)
    return efx.FilterBank(basis, coeff=torch.randn(total, channels, int(amount)))


def measure(kernel, K, stride, groups, channels, dtype, amount) -> dict:
    bank = bank_of(kernel, K, groups, channels, amount)
    size = 28 if groups > 1 else SIZES[channels]
    x = torch.randn(4, groups * channels, size, size, dtype=dtype)
    grad = torch.randn(4, groups * channels, (size - 1) // stride + 1, (size - 1) // stride + 1, dtype=dtype)
    geometry = ([stride] * 2, [K // 2] * 2, [1, 1], groups, bank.scale)
    row = {"kernel": kernel, "K": K, "stride": stride, "groups": groups, "channels": channels}
    row |= {"dtype": str(dtype).removeprefix("torch."), "amount": amount}
    for layout, name in ((torch.contiguous_format, "nchw"), (torch.channels_last, "nhwc")):
        inputs = (x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout))
        calls: dict = {}
        for plan in ("dense", "low_rank" if kernel == "pca" else kernel):
            made = make_plan(bank, dtype, stride=(stride, stride), groups=groups, force=plan)
            filters = (bank.basis, bank.steering, made.packed)
            rest = (*geometry, made.code)
            calls[f"forward {plan}"] = partial(ops.fixed_conv2d, inputs[0], *filters, None, *rest)
            calls[f"gradient {plan}"] = partial(ops.fixed_conv2d_input_grad, inputs[1], *filters, [size, size], *rest)
        seconds = [t.median for t in interleaved(calls, 7, 1e-3).values()]
        row[name] = [round(seconds[0] / seconds[2], 2), round(seconds[1] / seconds[3], 2)]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=["avx512", "avx2", "plain"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="all")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    isa = use_isa(args.isa, sys.argv)
    rows = []
    for case in cases(args.only):
        rows.append(measure(*case))
        print(json.dumps(rows[-1]), flush=True)
    machine = hardware(torch.device("cpu"))
    about = {"hardware": machine["cpu"], "cores": machine["cores"], "torch": torch.__version__}
    about |= {"isa": isa, "threads": args.threads, "ratio": "dense / kernel, [forward, gradient]"}
    lines = ",\n".join(json.dumps(row) for row in rows)
    path = RESULTS / f"tune_cpu_{isa}.json"
    path.write_text(f'{{"about": {json.dumps(about)}, "rows": [\n{lines}\n]}}\n')
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
