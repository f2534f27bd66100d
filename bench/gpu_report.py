"""Puts what bench/gpu.sh measured into one JSON file, and prints it as Markdown for RESULTS.md.

python bench/gpu_report.py FOLDER [--name check]     merges FOLDER/*.json and parts.tsv into FOLDER/cuda_<card>.json
python bench/gpu_report.py FILE.json [--picture FILE.png]     prints such a file again, and draws its layers
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from gpu.report import (
    LAYER_HEAD,
    TRAINING_HEAD,
    about_gpu,
    layer_cells,
    slug,
    training_cells,
)
from names_only import names_only
from table import print_table

from explainfix_ext.commands.benchmarks.picture import plot_ratios

MEASURED = ("conv", "training")  # the parts that write FOLDER/<part>.json
HOST_BOUND = 1.25  # a step's time over that of a CUDA graph, from which on it is worth a sentence
ABOUT = ("hardware", "isa", "cuda", "cudnn", "torch", "explainfix_ext", "cpu", "date")


def merged(folder: Path) -> dict:
    """{"parts": how each part of gpu.sh ended, "conv": ..., "training": ...}, with what is known about the machine."""
    parts = []
    for line in _lines(folder / "parts.tsv"):
        name, code, seconds, last = line.split("\t", 3)
        parts.append({"part": name, "exit_code": int(code), "seconds": int(seconds), "last_line": last})
    found = {name: json.loads((folder / f"{name}.json").read_text())
             for name in MEASURED if (folder / f"{name}.json").exists()}  # fmt: skip
    return {**about_gpu(), "parts": parts, **found}


def print_report(report: dict) -> None:
    """Markdown: the parts, the layers, the training steps, what failed; a part that was not run is left out."""
    print("\n" + ", ".join(f"{name} {report[name]}" for name in ABOUT if name in report))
    if parts := report["parts"]:
        cells = [[p["part"], _outcome(p["exit_code"]), str(p["seconds"]), f"`{p['last_line'][:160]}`"] for p in parts]
        print_table(["part", "outcome", "seconds", "last line"], cells)
    if conv := report.get("conv"):
        rates = ", ".join(f"{name} {rate / 1e12:.1f} TFLOP/s" for name, rate in conv["flops"].items())
        print(f"\nCeilings: copy {conv['copy_bytes_per_second'] / 1e12:.2f} TB/s, {rates}")
        print_table(list(LAYER_HEAD), [layer_cells(row) for row in conv["rows"]])
    if training := report.get("training"):
        print_table(list(TRAINING_HEAD), training_cells(training["rows"]))
    for name in MEASURED:
        for failure in report.get(name, {}).get("failures", []):
            print("\nFAILED: " + ", ".join(map(str, failure.values())))
    if found := findings(report):
        print("\nWhat to look at next:\n")
        print("\n".join(f"- {finding}" for finding in found))


def findings(report: dict) -> list[str]:
    """Says in sentences what a reader should mend: what failed, what torch does faster, what is far from the bandwidth,
    and where the host takes longer than the card."""
    found = [f"{part['part']} {_outcome(part['exit_code'])}." for part in report["parts"] if part["exit_code"]]
    layers = report.get("conv", {}).get("rows", [])
    for row in layers:
        if row["ratio"]["median"] < 1:
            times = f"{1 / row['ratio']['median']:.2f} times as fast"
            found.append(f"{row['case']}, {row['task']}: torch is {times}; ops/plans/cuda.py might say dense.")
    for row in sorted(layers, key=lambda row: row["copy_fraction"])[:3]:
        found.append(f"{row['case']}, {row['task']}: {row['copy_fraction']:.0%} of the bandwidth, of the least.")
    for row in report.get("training", {}).get("rows", []):
        if "graph_seconds" in row and row["seconds"]["median"] > HOST_BOUND * row["graph_seconds"]["median"]:
            times = (
                f"{row['seconds']['median'] / row['graph_seconds']['median']:.1f} times as long as from a CUDA graph"
            )
            found.append(f"{row['model']}, {row['variant']}: a step takes {times}: the host is the limit.")
    return found


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _outcome(code: int) -> str:
    return {0: "passed", 124: "stopped at its time limit", 137: "killed"}.get(code, f"failed ({code})")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="FOLDER|FILE")
    parser.add_argument("--name", default="", help="of the call: goes into the file's name")
    parser.add_argument("--picture", type=Path, help="PNG of the layers' ratios")
    arguments = parser.parse_args(argv)
    if not arguments.path.exists():
        parser.exit(2, f"{arguments.path} is not there\n")
    if arguments.path.is_dir():
        report = merged(arguments.path)
        name = "_".join(["cuda", slug(report["hardware"]), *([arguments.name] if arguments.name else [])])
        (arguments.path / f"{name}.json").write_text(json.dumps(names_only(report), indent=1) + "\n")
    else:
        report = json.loads(arguments.path.read_text())
    print_report(report)
    if arguments.picture:
        if not report.get("conv", {}).get("rows"):
            parser.exit(2, f"{arguments.path} has no layers to draw\n")
        plot_ratios(report["conv"], arguments.picture)


if __name__ == "__main__":
    main()
