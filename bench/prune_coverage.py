"""How much of 60 architectures `channelprune` can remove, beside Torch-Pruning on the same networks.

    python bench/prune_coverage.py [--only GLOB] [--again] [--limit SECONDS] [--out FILE.json]
    python bench/prune_coverage.py --table [--out FILE.json]

Each network runs in a process of its own, with a time limit: learned (scored by l1) and fixed (dct2, by random
scores), whole channels, half and nine tenths of the spatial filters; then Torch-Pruning (learned only: it knows no
fixed layers; MagnitudeImportance, the same share of the channels of each layer but the last), and ours once more,
asked for as many filters as Torch-Pruning removed at 0.5. What was written already is not run again. No time is
measured. --table prints the rows for RESULTS.md and draws the picture.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from networks.coverage import coverage_networks
from networks.prune import randomise_norms
from rich.progress import track
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext._support.machine import versions
from explainfix_ext._support.models import spatial_convolutions
from explainfix_ext._support.text import first_line
from explainfix_ext.prune.costs import layer_costs
from explainfix_ext.prune.report import layers_by_reason
from explainfix_ext.prune.trace.kinds import MIXING

RESULTS = Path(__file__).parent / "results"
AMOUNTS = (0.5, 0.9)
SIZE = 64
MARK = "RESULT "


def measure(build: Callable[[], nn.Module], known: dict[str, Any]) -> dict[str, Any]:
    """Prunes one network in every way that is not `known`; returns way -> what came of it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    learned = randomise_norms(build()).eval()
    fixed = copy.deepcopy(learned)
    efx.convert(fixed, "dct2", seed=0)
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    found = dict(known)
    for amount in AMOUNTS:
        if f"torch_pruning {amount}" not in known:
            found[f"torch_pruning {amount}"] = by_torch_pruning(learned, x, amount)
        found[f"learned {amount}"] = ours(learned, x, amount, "l1")
        found[f"fixed {amount}"] = ours(fixed, x, amount, "random")
    if gone := found["torch_pruning 0.5"].get("gone"):
        found["learned as torch_pruning"] = ours(learned, x, min(gone, 0.99), "l1")
    return found


def ours(model: nn.Module, x: Tensor, amount: float, criterion: str) -> dict[str, Any]:
    """Prunes a copy by channelprune; a refusal is told from an error of another kind, which is a bug."""
    try:
        report = efx.channelprune(model, x, amount=amount, criterion=criterion, granularity="channel", bn_bias="drop")
    except ValueError as error:
        return {"refused": first_line(error)}
    except Exception as error:
        return {"raw": f"{type(error).__name__}: {first_line(error)}"}
    assert report.model is not None
    report.model.eval()(torch.cat([x, x]))  # another batch
    held = {reason: len(names) for reason, names in layers_by_reason(report.protected).items()}
    return {
        **compared(model, report.model, x),
        "verify_error": report.verify_error,
        "protected": dict(sorted(held.items(), key=lambda pair: -pair[1])[:4]),
    }


def by_torch_pruning(model: nn.Module, x: Tensor, amount: float) -> dict[str, Any]:
    """Prunes a copy by Torch-Pruning's MagnitudePruner, as its README does."""
    import torch_pruning

    pruned = copy.deepcopy(model).requires_grad_(True)
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            pruned,
            x.clone().requires_grad_(True),
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=amount,
            ignored_layers=[last_layer(pruned, x)],
        )
        pruner.step()
        with torch.no_grad():
            shapes = [[t.shape for t in tensors(m(x))] for m in (model, pruned)]
        if shapes[0] != shapes[1]:
            return {"refused": "its output has another shape"}
        return compared(model, pruned, x)
    except Exception as error:  # a library on a model that it was not made for
        return {"raw": f"{type(error).__name__}: {first_line(error)}"}


def last_layer(model: nn.Module, x: Tensor) -> nn.Module:
    ran: list[nn.Module] = []
    layers = [m for m in model.modules() if isinstance(m, MIXING)]
    handles = [m.register_forward_hook(lambda module, args, result: ran.append(module)) for m in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return ran[-1]


def tensors(output: Any) -> list[Tensor]:
    from explainfix_ext.prune.trace.modes import tensors_of

    return tensors_of(output)


def compared(whole: nn.Module, pruned: nn.Module, x: Tensor) -> dict[str, Any]:
    """Returns the share of the spatial filters that are no longer there, and of the multiply-adds that are left.

    Layers that do not run are left out, as those of an encoder that is deeper than a decoder reads.
    """
    counts, work = [], []
    for model in (whole, pruned):
        costs, spatial = layer_costs(model, (x,)), spatial_convolutions(model)
        counts.append(sum(cost.filters for name, cost in costs.items() if name in spatial))
        work.append(sum(cost.multiply_adds for cost in costs.values()))
    return {"gone": 1 - counts[1] / counts[0], "multiply_adds_left": work[1] / work[0]}


def in_a_process(name: str, limit: float, known: dict[str, Any]) -> dict[str, Any]:
    """Runs `measure` for one network; a crash and a run that takes too long are results, too."""
    command = [sys.executable, __file__, "--one", name, "--known", json.dumps(known)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    return json.loads(lines[-1].removeprefix(MARK))


def table(rows: dict[str, Any]) -> str:
    """Returns the Markdown table: filters gone and multiply-adds left of each way, and why a network was refused."""
    lines = [
        "| network | learned 0.5 | learned 0.9 | fixed 0.5 | fixed 0.9 | Torch-Pruning 0.5 | 0.9 | as it at 0.5 "
        "| largest error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} |" + " |" * 7)
            continue
        errors = [r["verify_error"] for r in row.values() if r.get("verify_error") is not None]
        cells = [_cell(row.get(way)) for way in WAYS]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{max(errors):.0e}' if errors else ''} |")
    why: dict[str, list[str]] = {}
    for name, row in rows.items():
        reasons = {r[kind] for way, r in row.items() if way != "failed" and not way.startswith("torch_pruning")
                   for kind in ("refused", "raw") if kind in r}  # fmt: skip
        for reason in reasons:
            why.setdefault(reason, []).append(name)
    lines += ["", *(f"- {', '.join(names)}: {reason}" for reason, names in sorted(why.items()))]
    return "\n".join(lines)


WAYS = (
    *(f"{kind} {amount}" for kind in ("learned", "fixed", "torch_pruning") for amount in AMOUNTS),
    "learned as torch_pruning",
)


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    if "gone" not in result:
        return "refused" if "refused" in result else "error"
    return f"{100 * result['gone']:.0f} ({result['multiply_adds_left']:.2f})"


def plot(rows: dict[str, Any], path: Path) -> None:
    """Draws, for each network, the share of the filters that went at 0.5 and 0.9; a cross where none did."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 11), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    names = [*rows]
    kinds = {"learned": ("o", "C0"), "fixed": ("D", "C2"), "torch_pruning": ("|", "C1")}
    for axes, amount in zip(figure.subplots(1, 2, sharey=True), AMOUNTS, strict=True):
        for kind, (marker, colour) in kinds.items():
            gone = [rows[name].get(f"{kind} {amount}", {}).get("gone", 0.0) for name in names]
            axes.scatter(
                gone, range(len(names)), marker=marker, color=colour, s=40 if marker == "|" else 18, label=kind
            )
        axes.axvline(amount, color="0.7", linewidth=1)
        axes.grid(alpha=0.3)
        axes.set(xlabel="share of the spatial filters gone (0: refused)", title=f"{amount:.0%} asked")
    figure.axes[0].set_yticks(range(len(names)), names, fontsize=8)
    figure.axes[0].invert_yaxis()
    figure.axes[1].legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="glob of networks")
    parser.add_argument("--again", action="store_true", help="ours of those that are written already, too")
    parser.add_argument("--limit", type=float, default=400, help="seconds for one network")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--known", help=argparse.SUPPRESS, default="{}")
    parser.add_argument("--out", type=Path, default=RESULTS / "prune_coverage.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    networks = coverage_networks()
    if arguments.one:
        print(MARK + json.dumps(measure(networks[arguments.one], json.loads(arguments.known))))
        return
    written = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else {}
    chosen = [name for name in networks if fnmatchcase(name, arguments.only)]
    if not arguments.table:
        for name in track([n for n in chosen if arguments.again or n not in written], "networks"):
            known = {way: r for way, r in written.get(name, {}).items() if way.startswith("torch_pruning")}
            written[name] = in_a_process(name, arguments.limit, known)
            rows = {n: written[n] for n in networks if n in written}
            about = {"versions": versions() | _versions_of_models(), "size": SIZE}
            arguments.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    plot(written, arguments.out.with_suffix(".png"))
    print(table(written))


def _versions_of_models() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("monai", "transformers", "torch-pruning")}


if __name__ == "__main__":
    main()
