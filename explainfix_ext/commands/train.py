"""Defines `explainfix train` and `explainfix demo`: options and what they print. `training.runs` does the work."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from explainfix_ext._support.files import check_writable
from explainfix_ext._support.pictures import check_drawable
from explainfix_ext.training import distributed
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.curves import plot_curves
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.runs import train_networks

from .options import Device, Json, Resume, Seed
from .tables import ProgressBar, console, results_table, task_table

_DEMO = TrainConfig(epochs=10, batch_size=32)
_DEMO_INITS = ("learned", "auto")


def train(
    context: typer.Context,
    out: Annotated[Path, Option(help="Folder for checkpoints, logs, results.json and curves.png.")],
    model: Annotated[
        str,
        Option(
            help="bottleneck, basicblock, densenet, efficientnet, unet, unet_plain, unet_separable; NAME@0.5: half the "
            "channels. Or torchvision:NAME, timm:NAME, smp:ARCH/ENCODER."
        ),
    ] = "bottleneck",
    data: Annotated[
        str,
        Option(help="mnist5k, medmnist:NAME, FILE.npz, bbbc038:PATH, chexpert:PATH or folder:PATH; ?size=128 resizes."),
    ] = "mnist5k",
    init: Annotated[
        list[str],
        Option(help="learned, or how to fix filters, see `explainfix inits`; dct2@0.1: 10 % of them nonzero."),
    ] = ["learned", "auto"],  # noqa: B006 (typer copies it)
    pointwise: Annotated[bool, Option("--pointwise", help="Add a learned 1x1 after each fixed convolution.")] = False,
    learn_coeff: Annotated[bool, Option("--learn-coeff", help="Fix the basis, learn the coefficients.")] = False,
    epochs: Annotated[int, Option(help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, Option(help="Images per step and process.")] = 64,
    lr: Annotated[float, Option(help="Highest learning rate, after a short warm-up and before a cosine to 0.")] = 3e-3,
    weight_decay: Annotated[float, Option(help="Weight decay of AdamW.")] = 0.01,
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
        model=model,
        data=data,
        pointwise=pointwise,
        learn_coeff=learn_coeff,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        seed=seed,
        amp=amp,
        accumulate=accumulate,
        limit=limit,
        world_size=distributed.world_size(),
        memory=memory,
        steering=steering,
    )
    names = [name.strip() for value in init for name in value.split(",")]
    _train(base, names, out, context.obj, resume=resume, device=device, workers=workers, as_json=as_json)


def demo(
    context: typer.Context,
    out: Annotated[Path | None, Option(help="Folder for the results (default: a new one, explainfix-demo).")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train two small networks on 5,000 real MNIST images, one learned, one with fixed filters, in 90 seconds."""
    out = out or _new_folder("explainfix-demo")
    base = dataclasses.replace(_DEMO, seed=seed, world_size=distributed.world_size())
    _train(base, _DEMO_INITS, out, context.obj, resume=resume, device=device, workers=0, as_json=as_json)


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
    """Trains one network per init, draws the curves, and prints the table or JSON."""
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    configs = [dataclasses.replace(base, init=init) for init in inits]
    main = distributed.rank() == 0
    if main:
        check_drawable()
        check_writable(out / "curves.png")
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
    """Returns the command that was given, with --resume added, and with --out if the folder was chosen by default."""
    words = [*argv, *(["--out", str(out)] if "--out" not in " ".join(argv) else [])]
    return shlex.join(["explainfix", *words, *(["--resume"] if "--resume" not in words else [])])


def _new_folder(name: str) -> Path:
    """Returns the first of `name`, name-2, name-3, ... that does not exist."""
    numbered = (Path(name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in numbered if not path.exists())
