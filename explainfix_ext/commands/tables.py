"""Turns what commands return into tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from explainfix_ext.memory.budget import MemoryPlan
from explainfix_ext.prune.report import layers_by_reason
from explainfix_ext.training.metrics import NAMES, shown, shown_with_error

_TASK_TITLES = {
    "auroc": "AUROC, test images",
    "study_auroc": "AUROC, studies (highest of their views)",
    "mcc": "MCC, test images (true +, false +, false -, true -)",
}


def task_tables(results: dict[str, Any]) -> Iterator[Table]:
    """Yields scores on the test images, a row per task and a column per network; nothing if tasks have no names."""
    runs, tasks = results["runs"], results["data"]["labels"]
    for measure, title in _TASK_TITLES.items():
        if not tasks or not any(f"{measure}/{task}" in run["test"] for run in runs for task in tasks):
            continue
        table = _table(title)
        table.add_column("task")
        for run in runs:
            table.add_column(run["network"], justify="right")
        for task in tasks:
            table.add_row(task, *(_task_cell(run, measure, task) for run in runs))
        table.add_section()
        table.add_row("mean", *(shown(run["test"].get(measure)) for run in runs))
        yield table


def _task_cell(run: dict[str, Any], measure: str, task: str) -> str:
    score = run["test"].get(f"{measure}/{task}")
    if score is None:
        return "one class only"
    counts = ""
    if measure == "mcc":
        (true_negative, false_positive), (false_negative, true_positive) = run["confusion"][task]
        counts = f" ({true_positive} {false_positive} {false_negative} {true_negative})"
    return f"{shown(score)}{counts}"


def results_table(results: dict[str, Any]) -> Table:
    """Returns what `train_networks` returned as a table, one row per network."""
    config, metric = results["runs"][0]["config"], results["metric"]
    table = Table(
        box=SIMPLE, title=f"{config['model']} on {results['data']['name']}, {config['epochs']} epochs, test images"
    )
    table.add_column("network", overflow="fold")
    numbers = (NAMES[metric], "time per step", "learned parameters", "checkpoint", "kept for backward", "peak")
    for name in numbers:
        table.add_column(name, justify="right")
    for run in results["runs"]:
        table.add_row(
            run["network"],
            shown_with_error(metric, run["test"][metric], results["data"]["test"]),
            f"{1e3 * run['step_seconds']:.1f} ms",
            f"{run['learned_parameters']:,}",
            f"{run['checkpoint_bytes'] / 2**20:.2f} MiB",
            f"{run['kept_bytes'] / 2**20:.1f} MiB",
            f"{run['peak_bytes'] / 2**20:.1f} MiB",
        )
    return table


def score_lines(results: dict[str, Any]) -> Iterator[str]:
    """Yields a line for each score of whole networks that no table has."""
    for name in ("f2",) if results["data"]["labels"] else ("mcc", "f2"):
        if all(name in run["test"] for run in results["runs"]):
            scores = (f"{run['network']} {shown(run['test'][name])}" for run in results["runs"])
            yield f"{NAMES[name]}: {', '.join(scores)}"


def memory_lines(results: dict[str, Any]) -> Iterator[str]:
    """Yields a sentence if fixed networks keep more than the learned one: what `--memory` would make again."""
    learned = next((run["kept_bytes"] for run in results["runs"] if run["config"]["init"] == "learned"), None)
    if learned is None:
        return
    more = [r["network"] for r in results["runs"] if r["config"]["memory"] == "off" and r["kept_bytes"] > learned]
    if more:
        yield f"more is kept for backward than by learned: {', '.join(more)}. --memory recompute keeps less"


def pruning_table(report: dict[str, Any]) -> Table:
    """Returns what `PruneReport.as_dict` returned as a table, one row per layer, and their sum."""
    table = _table("before -> after pruning, one image")
    table.add_column("layer", overflow="fold")
    for name in ("channels, in x out", "nonzero filters", "parameters", "multiply-adds"):
        table.add_column(name, justify="right")
    for name, sides in report["layers"].items():
        costs = (sides["before"], sides["after"])
        table.add_row(
            name,
            _pair(*(f"{cost['in_channels']}x{cost['out_channels']}" for cost in costs)),
            _pair(*(f"{cost['nonzero']:,}" for cost in costs)),
            _pair(*(f"{cost['parameters']:,}" for cost in costs)),
            _pair(*(_short(cost["multiply_adds"]) for cost in costs)),
        )
    table.add_section()
    stored, work = _pair(*(f"{n:,}" for n in report["parameters"])), _pair(*map(_short, report["multiply_adds"]))
    table.add_row("the network", "", "", stored, work)
    return table


def pruning_lines(report: dict[str, Any]) -> Iterator[str]:
    """Yields sentences: what was pruned, how exactly it was verified, and what had to stay."""
    yield f"{report['pruned_filters']:.1%} of the spatial filters pruned by {report['criterion']}"
    error = report["verify_error"]
    if error is None:
        yield "no channel was removed: the pruned network is the masked one"
    else:
        yield f"verified: equals the masked model to {f'{error:.0e}' if error else 'the last bit'}"
    for reason, names in layers_by_reason(report["protected"]).items():
        yield f"some channels stay ({reason}): {', '.join(names)}"


def stages_table(results: dict[str, Any]) -> Table:
    """Returns the test scores in what `prune_checkpoint` returned: unpruned, pruned and fine-tuned."""
    config, metric = results["config"], results["metric"]
    table = _table(f"{config['model']} on {results['data']['name']}, test images")
    table.add_column("network")
    for name in (NAMES[metric], "loss", "learned parameters"):
        table.add_column(name, justify="right")
    before, after = results["learned_parameters"]
    epochs = results["prune"]["epochs"]
    tuned = f"fine-tuned, {epochs} epoch{'s' * (epochs > 1)}"
    for key, name, learned in (
        ("unpruned", "unpruned", before),
        ("pruned", "pruned", after),
        ("fine_tuned", tuned, after),
    ):
        if (scores := results["test"][key]) is not None:
            score = shown_with_error(metric, scores[metric], results["data"]["test"])
            table.add_row(name, score, f"{scores['loss']:.4f}", f"{learned:,}")
    return table


def amounts_table(results: dict[str, Any]) -> Table:
    """Returns the pruning in what `Explained.as_dict` returned as a table, one row per amount."""
    metric, test = results["metric"], results["test"]
    images = results["data"]["test"] if test else 0
    table = _table("what pruning would leave, without fine-tuning")
    for name in (
        "filters pruned",
        "parameters",
        "multiply-adds",
        "verification error",
        *([f"test {NAMES[metric]}"] if test else []),
    ):
        table.add_column(name, justify="right")
    for pruned in results["pruning"]["amounts"]:
        if pruned["reason"]:
            table.add_row(f"{pruned['amount']:.0%}", pruned["reason"])
            continue
        error = pruned["verify_error"]
        table.add_row(
            f"{pruned['amount']:.0%}",
            _pair(*(f"{n:,}" for n in pruned["parameters"])),
            _pair(*map(_short, pruned["multiply_adds"])),
            "-" if error is None else f"{error:.0e}",
            *(
                [" -> ".join(shown_with_error(metric, s[metric], images) for s in (test, pruned["test"]))]
                if test
                else []
            ),
        )
    return table


def plan_table(title: str, plan: MemoryPlan) -> Table:
    """Returns what `memory_plan` returned as a table, one row per configuration."""
    head, *rows = plan.cells()
    table = _table(title)
    table.add_column(head[0])
    for name in head[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _table(title: str) -> Table:
    return Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)


def _short(n: int) -> str:
    return f"{n / 1e6:,.2f} M" if n >= 1e5 else f"{n / 1e3:.1f} k"


def _pair(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"
