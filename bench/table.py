"""Prints a JSON file of `explainfix demo`, `train` or `bench` as Markdown, for RESULTS.md.

Run: python bench/table.py FILE
"""

import json
import sys
from pathlib import Path

from explainfix_ext.commands.gains_shown import gains_rows
from explainfix_ext.training.metrics import shown_with_error


def main(path: str) -> None:
    results = json.loads(Path(path).read_text())
    if "networks" in results:
        head, *rows = gains_rows(results)
        print_table(head, rows)
        print_machine(results)
    elif "runs" in results:
        training_table(results)
    elif "energy" in results["rows"][0]:
        compression_table(results["rows"])
    elif "network" in results["rows"][0]:
        ddp_table(results["rows"])
    elif "way" in results["rows"][0]:
        gradient_free_table(results["rows"])
    elif "test" in results["rows"][0]:
        pruning_table(results["rows"])
    else:
        layer_table([row for row in results["rows"] if row["kind"] == "layer"])
        model_table([row for row in results["rows"] if row["kind"] == "model"])
        print("\n" + ", ".join(f"{name} {value}" for name, value in results.items() if name != "rows"))


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print("\n| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def compression_table(rows: list[dict]) -> None:
    """Of compress.py."""
    ways = ("as it is", "energy given back", "one epoch after")
    table = []
    for row in rows:
        cells = [row["data"], f"`{row['model']}`"]
        if row["energy"] is None:
            table.append([*cells, "learned", f"{row['test']['learned']['accuracy']:.3f}", "", "", "", "1.00"])
            continue
        functions = ", ".join(str(kept) for kept, _ in row["functions"].values())
        scores = [f"{row['test'][way]['accuracy']:.3f}" for way in ways]
        work = row["multiply_adds"]
        table.append([*cells, f"{row['energy']:.0%}", *scores, functions, f"{work[0] / work[1]:.2f}"])
    print_table(["data", "network", "energy", *ways, "functions of each layer", "multiply-adds"], table)


def ddp_table(rows: list[dict]) -> None:
    """Of ddp_bytes.py: megabytes, and the share of what the first way sends."""
    ways = [way for way in rows[0] if way != "network"]
    table = []
    for row in rows:
        first, *others = (row[way]["all_reduced"] for way in ways)
        shares = [f"{n / 1e6:.2f} ({n / first:.1%})" for n in others]
        table.append([row["network"], f"{first / 1e6:.2f}", *shares, f"{row[ways[0]]['broadcast'] / 1e6:.2f}"])
    print_table(["network, MB", *ways, "running statistics"], table)


def gradient_free_table(rows: list[dict]) -> None:
    """Of gradient_free.py: seeds in one row."""
    seeds: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        seeds.setdefault((row["net"], row["way"]), []).append(row)
    table = []
    for (net, way), group in sorted(seeds.items(), key=lambda item: item[0][0]):
        scores = [100 * row["right"] for row in group]
        mean, each = sum(scores) / len(scores), ", ".join(f"{score:.1f}" for score in scores)
        seconds = sum(row["seconds"] for row in group) / len(group)
        table.append([net, way, f"{mean:.1f} ({each})", f"{seconds:.1f}", f"{group[0]['learned']:,}"])
    print_table(["network", "filters", "right, %", "seconds", "numbers learned or solved for"], table)


def pruning_table(rows: list[dict]) -> None:
    """Of bench_prune.py: three seeds in one row, then the sweep."""
    metric = "accuracy"
    head = ["network", "pruned", "unpruned", "pruned, not tuned", "fine-tuned", "parameters", "multiply-adds", "step"]
    table, seeds = [], {}
    for row in rows:
        name, _, last = row["name"].rpartition("-")
        seeds.setdefault(name if last.isdigit() else row["name"], []).append(row)
    for name, group in seeds.items():
        cells = [f"`{name}`", f"{group[0].get('pruned_filters', 0):.1%}"]
        for stage in ("unpruned", "pruned", "fine_tuned"):
            scores = [row["test"][stage][metric] for row in group if row["test"][stage]]
            each = f" ({', '.join(f'{s:.3f}' for s in scores)})" if len(scores) > 1 else ""
            cells.append(f"{sum(scores) / len(scores):.4f}{each}" if scores else "")
        for measure in ("parameters", "multiply_adds"):
            pairs = [row[measure] for row in group if measure in row]
            cells.append(f"{sum(after / before for before, after in pairs) / len(pairs):.2f}" if pairs else "")
        times = [row["time_over_whole"]["step"] for row in group if "time_over_whole" in row]
        table.append([*cells, f"{sum(times) / len(times):.2f}" if times else ""])
    print_table(head, table)


def training_table(results: dict) -> None:
    metrics = [name for name in results["runs"][0]["test"] if name != "loss"]
    head = [
        "network",
        *metrics,
        "time per step (ms)",
        "learned parameters",
        "checkpoint (kB)",
        "kept for backward (MB)",
    ]
    rows = []
    for run in results["runs"]:
        scores = [shown_with_error(name, run["test"][name], results["data"]["test"]) for name in metrics]
        costs = [f"{run['step_seconds'] * 1e3:.1f}", f"{run['learned_parameters']:,}"]
        sizes = [f"{run['checkpoint_bytes'] / 1e3:.0f}", f"{run['kept_bytes'] / 1e6:.1f}"]
        rows.append([f"`{run['network']}`", *scores, *costs, *sizes])
    print_table(head, rows)
    print_machine(results)


def print_machine(results: dict) -> None:
    machine = {**results["hardware"], **results["versions"]}
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None))


def layer_table(rows: list[dict]) -> None:
    """Ratios: torch's time in its faster layout over ours, in NCHW / in channels_last."""
    threads = sorted({row["threads"] for row in rows}, reverse=True)
    tasks = ("forward", "input gradient")
    head = [
        "layer",
        "plan",
        *(f"{task}, {n} threads" for n in threads for task in tasks),
        "share of peak",
        "error / torch's",
    ]
    found = {(row["case"], row["threads"], row["task"]): row for row in rows}
    table = []
    for case in dict.fromkeys(row["case"] for row in rows):
        first = found[case, threads[0], "forward"]
        cells = [case, first["plan"]]
        for n in threads:
            for task in tasks:
                row = found[case, n, task]
                cells.append(f"{row['ratio']['median']:.2f} / {row['ratio_channels_last']['median']:.2f}")
        cells.append(f"{first['peak_fraction'] * 100:.0f} %")
        cells.append(f"{first['error']['ours']:.1e} / {first['error']['torch']:.1e}")
        table.append(cells)
    print_table(head, table)


def model_table(rows: list[dict]) -> None:
    """Milliseconds of the learned network, and how many times faster the others are."""
    for threads in sorted({row["threads"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["threads"] == threads]
        modes = [mode for mode in dict.fromkeys(row["mode"] for row in mine) if mode != "learned"]
        found = {(row["case"], row["mode"]): row for row in mine}
        table = []
        for case in dict.fromkeys(row["case"] for row in mine):
            ratios = [found.get((case, mode)) for mode in modes]
            learned = found[case, "learned"]["seconds"]["median"]
            table.append([case, f"{learned * 1e3:.0f}", *(f"{r['ratio']['median']:.2f}" if r else "-" for r in ratios)])
        print_table([f"network, {threads} threads", "learned (ms)", *modes], table)


if __name__ == "__main__":
    main(sys.argv[1])
