"""Runs all of `explainfix bench` into bench/results/cpu_conv_<cpu>.json and .png; takes its options, such as --rounds.

Run: python bench/bench_cpu_conv.py [--isa avx2] [OPTIONS of `explainfix bench`]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from explainfix_ext import cli
from explainfix_ext._support.machine import hardware

RESULTS = Path(__file__).resolve().parent / "results"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--isa")
    isa, others = parser.parse_known_args(argv)
    words = re.findall("[a-z0-9]+", hardware(torch.device("cpu"))["cpu"].lower())
    name = "_".join(["cpu_conv", *words, *([isa.isa] if isa.isa else [])])
    options = ["--isa", isa.isa] if isa.isa else []
    cli.main(["bench", "--out", str(RESULTS / f"{name}.json"), *options, *others])


if __name__ == "__main__":
    main()
