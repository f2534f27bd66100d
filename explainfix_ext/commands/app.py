"""The commands of `explainfix`: options, progress, tables. What they do is elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table
from typer import Option

from explainfix_ext.commands.benchmarks.picture import plot_ratios
from explainfix_ext.filters.make_bank import initializers
from explainfix_ext.ops.status import status as get_status
from explainfix_ext.training import distributed
from explainfix_ext.training.checkpoint import write_atomic
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.curves import plot_curves
from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint
from explainfix_ext.training.runs import train_networks
from explainfix_ext.training.trainer import Observer

from . import benchmarks
from .benchmarks import report
from .explain import explain
from .options import Device, Json, Resume, Seed
from .tables import ProgressBar, console, pruning_lines, pruning_table, results_table, stages_table, task_table

app = typer.Typer(
    help="Convolutional networks with fixed spatial filters, beside the same networks learned.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_DEMO = TrainConfig(epochs=10, batch_size=32)
_DEMO_INITS = ("learned", "dct2")


@app.command(epilog="Example: explainfix train --init learned,dct2,dct2@0.1 --epochs 3 --limit 1000 --out runs/mnist")
def train(
    context: typer.Context,
    out: Annotated[Path, Option(help="Folder for checkpoints, logs, results.json and curves.png.")],
    model: Annotated[
        str, Option(help="bottleneck, basicblock, unet, torchvision:NAME, timm:NAME or smp:ARCH/ENCODER.")
    ] = "bottleneck",
    data: Annotated[
        str,
        Option(help="mnist5k, medmnist:NAME, FILE.npz, bbbc038:PATH, chexpert:PATH or folder:PATH; ?size=128 resizes."),
    ] = "mnist5k",
    init: Annotated[
        list[str], Option(help="learned, or how filters are fixed: `explainfix inits`; dct2@0.1: 10 % of them nonzero.")
    ] = ["learned", "dct2"],  # noqa: B006 (typer copies it)
    pointwise: Annotated[bool, Option("--pointwise", help="Add a learned 1x1 after each fixed convolution.")] = False,
    learn_coeff: Annotated[bool, Option("--learn-coeff", help="Fix the basis, learn the coefficients.")] = False,
    epochs: int = 10,
    batch_size: Annotated[int, Option(help="Images per step and process.")] = 64,
    lr: Annotated[float, Option(help="Highest learning rate: a short warm-up, then a cosine to 0.")] = 3e-3,
    weight_decay: float = 0.01,
    seed: Seed = 0,
    amp: Annotated[str, Option(help="Mixed precision: off, bf16, or on CUDA fp16.")] = "off",
    accumulate: Annotated[int, Option(help="Steps per update of the weights.")] = 1,
    limit: Annotated[int | None, Option(help="Train on this many images only.")] = None,
    memory: Annotated[str, Option(help="Keep fewer activations: off, exact, recompute or int8.")] = "off",
    steering: Annotated[str | None, Option(help="File of Steering.save, for init guided_steer or svd_steer.")] = None,
    workers: Annotated[int, Option(help="Processes that load images.")] = 0,
    device: Device = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a network, learned and with fixed filters, and compare what each reaches and costs.

    Under torchrun all processes train together: torchrun --nproc-per-node 2 -m explainfix_ext.cli train ...
    """
    base = TrainConfig(
        model, data, "learned", pointwise, learn_coeff, epochs, batch_size, lr, weight_decay, seed, amp, accumulate,
        limit, distributed.world_size(), memory, steering,
    )  # fmt: skip
    names = [name.strip() for value in init for name in value.split(",")]
    _train(base, names, out, context.obj, resume=resume, device=device, workers=workers, as_json=as_json)


@app.command(epilog="Example: explainfix demo --out runs/demo")
def demo(
    context: typer.Context,
    out: Annotated[Path | None, Option(help="Folder for the results; by default a new one, explainfix-demo.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Two small networks on 5,000 real MNIST images: one learned, one with fixed DCT filters. A minute and a half."""
    out = out or _new_folder("explainfix-demo")
    base = dataclasses.replace(_DEMO, seed=seed, world_size=distributed.world_size())
    _train(base, _DEMO_INITS, out, context.obj, resume=resume, device=device, workers=0, as_json=as_json)


@app.command(epilog="Example: explainfix prune runs/demo/dct2/checkpoint.pt --amount 0.8 --out runs/pruned")
def prune(
    checkpoint: Annotated[Path, typer.Argument(help="OUT/NETWORK/checkpoint.pt of `explainfix train` or `demo`.")],
    out: Annotated[Path, Option(help="Folder for model.pt, plan.json, kept.png, log.jsonl and results.json.")],
    amount: Annotated[float, Option(help="Share of the spatial filters to prune.")] = 0.9,
    criterion: Annotated[
        str, Option(help="The lowest go: explainfix, taylor, l1, l2, bn_scale, hrank, nisp or random.")
    ] = "explainfix",
    data: Annotated[str | None, Option(help="As train takes it; by default what the network was trained on.")] = None,
    scope: Annotated[str, Option(help="global: the lowest of the network; layer: the same share of each.")] = "global",
    granularity: Annotated[str, Option(help="filter, or channel: all that write or read one, at once.")] = "filter",
    weigh: Annotated[str, Option(help="score; or work: by score per multiply-add, for faster networks.")] = "score",
    unstructured: Annotated[
        bool, Option("--unstructured", help="Only set filters to zero; remove no channel.")
    ] = False,
    bn_bias: Annotated[
        str, Option(help="A channel of zero filters is a constant: keep it, drop it, or fold it into biases.")
    ] = "drop",
    epochs: Annotated[int, Option(help="Of fine-tuning; 0 for none.")] = 5,
    lr: Annotated[float | None, Option(help="Highest learning rate of fine-tuning; by default the training's.")] = None,
    batches: Annotated[int, Option(help="Batches of training images on which filters are scored.")] = 20,
    device: Device = "auto",
    seed: Annotated[
        int | None, Option(help="Of the order of the images, and of random; by default the training's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prune a trained network, prove that nothing else changed, fine-tune it, and test it at every stage."""
    config = PruneConfig(
        amount, criterion, scope, granularity, weigh, not unstructured, bn_bias, batches, epochs, lr, seed
    )
    with contextlib.redirect_stdout(sys.stderr), ProgressBar() as observer:
        results = prune_checkpoint(checkpoint, out, config, data=data, device=device, observer=observer)
    if as_json:
        print(json.dumps(results))
        return
    console().print(pruning_table(results["report"]))
    print(*pruning_lines(results["report"]), sep="\n")
    console().print(stages_table(results))
    print(f"network: {out / 'model.pt'}, its plan: {out / 'plan.json'}")
    print(f"picture: {out / 'kept.png'}\nall numbers: {out / 'results.json'}")


app.command(epilog="Example: explainfix explain runs/demo/dct2/checkpoint.pt --html report.html")(explain)


@app.command(epilog="Example: explainfix status")
def status(as_json: Json = False) -> None:
    """What runs here: versions, binaries, instruction set, GPU."""
    found = get_status()
    print(json.dumps(found.as_dict()) if as_json else found)


@app.command(epilog="Example: explainfix inits")
def inits(as_json: Json = False) -> None:
    """The ways to make fixed filters, for --init."""
    if as_json:
        print(json.dumps(initializers()))
        return
    table = Table("init", "filters")
    for name, line in initializers().items():
        table.add_row(name, line)
    console().print(table)


@app.command(epilog="Example: explainfix bench --cases 'lowrank-4of9-*' --threads 1 --quick")
def bench(
    context: typer.Context,
    cases: Annotated[str, Option(help="Globs of case names, with commas between them.")] = "*",
    kind: Annotated[str, Option(help="layer, model or all.")] = "all",
    threads: Annotated[str | None, Option(help="Such as 1,2; by default these, as far as there are cores.")] = None,
    rounds: Annotated[int, Option(help="Times that each computation has its turn.")] = 15,
    quick: Annotated[bool, Option("--quick", help="Small inputs, 3 rounds: shows that it runs, not how fast.")] = False,
    listing: Annotated[bool, Option("--list", help="Print the cases, and why each is there; measure nothing.")] = False,
    isa: Annotated[str | None, Option(help="avx512, avx2 or plain: keep ours and torch to it.")] = None,
    out: Annotated[Path | None, Option(help="FILE.json for all numbers; a picture is drawn into FILE.png.")] = None,
    as_json: Json = False,
) -> None:
    """Time the kernels on this CPU: layers beside torch's faster layout, networks beside the same learned.

    Each result is checked against float64 before it is timed. The full set takes a quarter of an hour or more.
    """
    chosen, counts = benchmarks.select(cases, kind), benchmarks.parse_threads(threads)
    if out is not None and out.suffix != ".json":
        raise ValueError(f"out must be a file named FILE.json, got {out}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if listing:
        names = [{"case": case.name, "kind": case.kind, "reason": case.reason} for case in chosen]
        print(json.dumps(names)) if as_json else console().print(report.case_table(chosen))
        return
    in_use = benchmarks.use_isa(isa, ["-m", "explainfix_ext.cli", *context.obj])
    found = _bench(chosen, counts, benchmarks.QUICK_ROUNDS if quick else rounds, quick, in_use, out)
    if out is not None:
        plot_ratios(found, out.with_suffix(".png"))
    if as_json:
        print(json.dumps(found))
        return
    for table in report.tables(found["rows"]):
        console().print(table)
    if out is not None:
        print(f"all numbers: {out}\npicture: {out.with_suffix('.png')}")


def _bench(
    cases: Sequence[benchmarks.Case], threads: Sequence[int], rounds: int, quick: bool, isa: str, out: Path | None
) -> dict[str, Any]:
    """Measure, with a bar on stderr. What there is so far is written to `out` after each measurement."""
    peaks = benchmarks.measure_peaks()
    todo = list(benchmarks.jobs(cases, threads, rounds, peaks, quick))
    found = report.as_json([], peaks, isa, quick)
    with contextlib.redirect_stdout(sys.stderr), Progress(console=console(stderr=True)) as progress:
        task = progress.add_task("", total=len(todo))
        for name, measure in todo:
            progress.update(task, description=name)
            found["rows"] += measure()
            progress.advance(task)
            if out is not None:
                write_atomic(out, lambda file: file.write(report.as_text(found).encode()))
    return found


def _train(
    base: TrainConfig,
    inits: Sequence[str],
    out: Path,
    argv: list[str],
    *,
    resume: bool,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Train one network for each init; print the table, or JSON, and draw the curves."""
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    configs = [dataclasses.replace(base, init=init) for init in inits]
    main = distributed.rank() == 0
    try:
        # Libraries that print must not do so between the lines of the JSON.
        with contextlib.redirect_stdout(sys.stderr), ProgressBar() if main else contextlib.nullcontext() as observer:
            results = train_networks(
                configs, out, resume=resume, device=device, workers=workers, observer=observer or Observer()
            )
    except KeyboardInterrupt:
        if main:
            print(f"interrupted; to go on: {_resume_command(argv, out)}", file=sys.stderr)
        raise typer.Exit(130) from None
    if not main:
        return
    plot_curves(results, out / "curves.png")
    if as_json:
        print(json.dumps(results))
        return
    console().print(results_table(results))
    if (tasks := task_table(results)) is not None:
        console().print(tasks)
    print(f"curves: {out / 'curves.png'}\nall numbers: {out / 'results.json'}")


def _resume_command(argv: list[str], out: Path) -> str:
    """The command that was given, with --resume, and with the folder if it was chosen for it."""
    words = [*argv, *(["--out", str(out)] if "--out" not in " ".join(argv) else [])]
    return shlex.join(["explainfix", *words, *(["--resume"] if "--resume" not in words else [])])


def _new_folder(name: str) -> Path:
    """`name`, or name-2, name-3, ...: the first that is not there."""
    numbered = (Path(name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in numbered if not path.exists())
