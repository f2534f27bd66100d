"""Prints results.json of `explainfix train` as Markdown, for RESULTS.md. Run: python bench/table.py FILE"""

import json
import sys
from pathlib import Path


def main(path: str) -> None:
    results = json.loads(Path(path).read_text())
    metrics = [name for name in results["runs"][0]["test"] if name != "loss"]
    head = [
        "network",
        *metrics,
        "time per step (ms)",
        "learned parameters",
        "checkpoint (kB)",
        "kept for backward (MB)",
    ]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for run in results["runs"]:
        scores = [f"{run['test'][name]:.4f}" for name in metrics]
        costs = [f"{run['step_seconds'] * 1e3:.1f}", f"{run['learned_parameters']:,}"]
        sizes = [f"{run['checkpoint_bytes'] / 1e3:.0f}", f"{run['kept_bytes'] / 1e6:.1f}"]
        print("| " + " | ".join([f"`{run['network']}`", *scores, *costs, *sizes]) + " |")
    machine = {**results["hardware"], **results["versions"]}
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None))


if __name__ == "__main__":
    main(sys.argv[1])
