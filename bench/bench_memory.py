"""What a training step keeps and takes, in memory and time: torch's ways beside save_memory.

    python bench/bench_memory.py [--models resnet18,unet] [--batch 8] [--size 224] [--out bench/results/memory_cpu.json]

For each network: learned; frozen (spatial convolutions fixed, by torch); torch.utils.checkpoint around each block;
torch.compile with activation_memory_budget; ours in each mode, with checkpoint="blocks", and on the flattened network.
Bytes kept for the backward pass and the peak of activations and gradients are counted over living storages, or on a GPU
by max_memory_allocated; the growth of the process is what the operating system saw. torch.compile's peak on the CPU is
not measured: it does not run compiled while storages are counted. Each is measured in a process of its own. Steps are
then timed side by side, interleaved, on smaller images. Errors are those of all gradients together, over the frozen
network's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from gpu.device import clock_of
from names_only import names_only
from networks.memory import MEMORY_MODELS
from rich.progress import track
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import explainfix_ext as efx
from explainfix_ext._support.machine import hardware, versions
from explainfix_ext._support.timing import interleaved, keep_memory
from explainfix_ext.commands.benchmarks.models import freeze_spatial
from explainfix_ext.memory import flatten, save_memory
from explainfix_ext.memory.count import count_step
from explainfix_ext.training.costs import bytes_kept
from explainfix_ext.training.models import logits_of

BUDGET = 0.2  # of torch.compile: the share of the activations to keep
OURS = ("exact", "recompute", "int8", "exact blocks", "recompute blocks")
VARIANTS = ("learned", "frozen", "checkpoint", "compile", *OURS, "recompute flat", "int8 flat")
TIMED = ("frozen", "learned", "checkpoint", *OURS)
BLOCKS = {"BasicBlock", "Bottleneck", "MBConv", "ASPP"}


def build(name: str, variant: str, plan: str = "auto") -> nn.Module:
    torch.manual_seed(0)
    model = MEMORY_MODELS[name]().train()
    if variant == "learned":
        return model
    freeze_spatial(model)
    warnings.simplefilter("ignore")
    efx.convert(model, "dct2", seed=0, plan=plan)
    if variant in ("frozen", "checkpoint", "compile"):
        efx.revert(model)
        freeze_spatial(model)
    if variant == "checkpoint":
        checkpoint_blocks(name, model)
    if variant == "compile":
        import torch._functorch.config as config

        config.activation_memory_budget = BUDGET
        return torch.compile(model, backend="aot_eager_decomp_partition")
    if variant in ("frozen", "checkpoint"):
        return model
    mode, _, how = variant.partition(" ")
    model = flatten(model) if how == "flat" else model
    save_memory(model, mode, checkpoint="blocks" if how == "blocks" else "off")
    return model


def checkpoint_blocks(name: str, model: nn.Module) -> None:
    """As a user would: around each block of the network."""
    if name == "densenet121":
        for module in model.modules():
            if type(module).__name__ == "_DenseLayer":
                module.memory_efficient = True  # torchvision's own
        return
    if name == "vgg16_bn":
        ends = [i + 1 for i, m in enumerate(model.features) if isinstance(m, nn.MaxPool2d)]
        blocks = [model.features[begin:end] for begin, end in pairwise([0, *ends])]
        model.features = nn.Sequential(*blocks)
    elif name == "unet":
        blocks = [*model.down, *model.up]
    else:
        blocks = [m for m in model.modules() if type(m).__name__ in BLOCKS]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def step_loss(model: nn.Module, x: Tensor) -> Tensor:
    return logits_of(model(x)).float().square().mean()


def measure(name: str, variant: str, batch: int, size: int, device: str) -> dict:
    model = build(name, variant).to(device)
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    if variant == "compile" or device == "cuda":
        step_loss(model, x).backward()  # compiles; on a GPU, makes the libraries' workspaces, which stay
        model.zero_grad(set_to_none=True)
    row = {"model": name, "variant": variant, "batch": batch, "size": size}
    torch.manual_seed(1)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = step_loss(model, x)
        kept = torch.cuda.memory_allocated() - before
        loss.backward()
        peak = torch.cuda.max_memory_allocated() - before
    elif variant == "compile":  # under the mode that counts living storages, it would not run compiled
        kept, peak = bytes_kept(model, lambda net: step_loss(net, x)), None
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        usage = count_step(model, lambda net: step_loss(net, x))
        row["process_grew"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        kept, peak = usage.kept_bytes, usage.peak
    return row | {"kept": kept, "peak": peak}


def run_step(model: nn.Module, x: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    step_loss(model, x).backward()


def gradients(model: nn.Module, x: Tensor) -> Tensor:
    run_step(model, x)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def time_steps(name: str, batch: int, size: int, rounds: int, plan: str, device: str) -> dict:
    """Seconds of a step, median of interleaved rounds, and the error of the gradients."""
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    models = {variant: build(name, variant, plan).to(device) for variant in TIMED}
    want = gradients(models["frozen"], x)
    errors = {v: ((gradients(models[v], x) - want).norm() / want.norm()).item() for v in TIMED if v in OURS}
    steps = {variant: partial(run_step, model, x) for variant, model in models.items()}
    timings = interleaved(steps, rounds, clock=clock_of(device))
    medians = {variant: timing.median for variant, timing in timings.items()}
    over = {variant: medians[variant] / medians["frozen"] for variant in TIMED}
    return {
        "model": name,
        "batch": batch,
        "size": size,
        "plan": plan,
        "seconds": medians,
        "over_frozen": over,
        "error": errors,
    }


def in_own_process(arguments: argparse.Namespace, *words: str) -> list[dict]:
    options = ["--batch", arguments.batch, "--size", arguments.size, "--rounds", arguments.rounds]
    command = [sys.executable, __file__, *map(str, options), "--only", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        line = (done.stderr.strip().splitlines() or ["?"])[-1]
        return [{"model": words[0], "variant": words[1], "failed": line}]
    return json.loads(done.stdout)


def alone(arguments: argparse.Namespace) -> list[dict]:
    keep_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, what = arguments.only
    if what.startswith("time "):
        batch, size = max(2, arguments.batch // 2), arguments.size * 4 // 7
        return [time_steps(name, batch, size, arguments.rounds, what[5:], device)]
    return [measure(name, what, arguments.batch, arguments.size, device)]


def memory_cell(row: dict, frozen: dict) -> str:
    if row["peak"] is None:
        return f"({row['kept'] / 2**20:.0f} / not measured)"
    return f"{row['peak'] / frozen['peak']:.2f} ({row['kept'] / 2**20:.0f} / {row['peak'] / 2**20:.0f})"


def table(rows: list[dict], times: list[dict]) -> str:
    def cell(name: str, variant: str, number: Callable[[dict], str]) -> str:
        found = [r for r in rows if (r["model"], r["variant"]) == (name, variant)]
        return number(found[0]) if found and "failed" not in found[0] else "-"

    names = list(dict.fromkeys(row["model"] for row in rows))
    frozen = {r["model"]: r for r in rows if r["variant"] == "frozen" and "failed" not in r}
    lines = [
        "| peak over frozen (kept MiB / peak MiB) | " + " | ".join(names) + " |",
        "|" + " --- |" * (len(names) + 1),
    ]
    for variant in VARIANTS:
        cells = [cell(n, variant, lambda r: memory_cell(r, frozen[r["model"]])) for n in names]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    for plan in dict.fromkeys(t["plan"] for t in times):
        these = {t["model"]: t for t in times if t["plan"] == plan}
        lines += [
            "",
            f"| step over frozen, plan {plan} | " + " | ".join(these) + " |",
            "|" + " --- |" * (len(these) + 1),
        ]
        for variant in TIMED:
            lines.append(
                f"| {variant} | " + " | ".join(f"{t['over_frozen'][variant]:.2f}" for t in these.values()) + " |"
            )
        if plan == "dense":
            for mode in OURS:
                lines.append(
                    f"| error, {mode} | " + " | ".join(f"{t['error'][mode]:.1e}" for t in these.values()) + " |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MEMORY_MODELS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / f"memory_{device}.json")
    parser.add_argument("--measure", choices=["memory", "time"], help="only this; the other is as in --out")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(alone(arguments)))
        return
    names = arguments.models.split(",")
    jobs = [(name, variant) for name in names for variant in VARIANTS]
    plans = [(name, f"time {plan}") for name in names for plan in ("dense", "auto")]
    before = json.loads(arguments.out.read_text()) if arguments.measure else {}
    rows, times = before.get("rows", []), before.get("times", [])
    if arguments.measure != "time":
        rows = [row for job in track(jobs, "memory", transient=True) for row in in_own_process(arguments, *job)]
    if arguments.measure != "memory":
        times = [row for job in track(plans, "time", transient=True) for row in in_own_process(arguments, *job)]
    for row in (*rows, *times):
        if "failed" in row:
            print(f"{row['model']}, {row['variant']}: {row['failed']}")
    times = [row for row in times if "failed" not in row]
    about = {"hardware": hardware(torch.device(device)), "versions": versions()}
    arguments.out.write_text(json.dumps(names_only({**about, "rows": rows, "times": times}), indent=1) + "\n")
    print(table(rows, times))
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
