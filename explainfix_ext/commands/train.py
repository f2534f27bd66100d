"""Defines `explainfix train`: its options and what it prints. `training.runs` does the work."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from .options import HOW, MACHINE, Device, Json, Resume, Seed, list_data, list_models

if TYPE_CHECKING:
    from explainfix_ext.training.config import TrainConfig

_WHAT, _FIXED = "What to train", "Fixed filters"  # groups of options in the help


def train(
    context: typer.Context,
    out: Annotated[Path, Option(metavar="FOLDER", rich_help_panel=_WHAT, help="Folder for the results.")],
    data: Annotated[
        str,
        Option(
            metavar="DATA",
            is_eager=True,
            callback=list_data,
            rich_help_panel=_WHAT,
            help="A set or a file, see `--data list`.",
        ),
    ] = "mnist5k",
    model: Annotated[
        str,
        Option(
            metavar="MODEL",
            rich_help_panel=_WHAT,
            is_eager=True,
            callback=list_models,
            help="A network, see `--model list`.",
        ),
    ] = "bottleneck",
    init: Annotated[
        list[str],
        Option(
            metavar="INIT,...",
            rich_help_panel=_WHAT,
            help="A network for each: learned, or one of `explainfix inits`; dct2@0.1: 10 % nonzero.",
        ),
    ] = ["learned", "auto"],  # noqa: B006 (typer copies it)
    epochs: Annotated[int, Option(metavar="N", rich_help_panel=HOW, help="Passes over the training images.")] = 10,
    epoch_size: Annotated[
        int | None, Option(metavar="N", rich_help_panel=HOW, help="Images an epoch, drawn with replacement.")
    ] = None,
    limit: Annotated[int | None, Option(metavar="N", rich_help_panel=HOW, help="Train on N images only.")] = None,
    batch_size: Annotated[int, Option(metavar="N", rich_help_panel=HOW, help="Images a step and process.")] = 64,
    lr: Annotated[float, Option(metavar="RATE", rich_help_panel=HOW, help="Highest learning rate.")] = 3e-3,
    weight_decay: Annotated[float, Option(metavar="X", rich_help_panel=HOW, help="Of AdamW.")] = 0.01,
    loss: Annotated[
        str, Option(metavar="NAME", rich_help_panel=HOW, help="auto, focal, dice, generalized_dice.")
    ] = "auto",
    augment: Annotated[
        str | None, Option(metavar="LIST", rich_help_panel=HOW, help="Of flip,noise,shift,invert,crop:PIXELS.")
    ] = None,
    seed: Seed = 0,
    pointwise: Annotated[
        bool, Option("--pointwise", rich_help_panel=_FIXED, help="Add a learned 1x1 after each fixed layer.")
    ] = False,
    learn_coeff: Annotated[
        bool, Option("--learn-coeff", rich_help_panel=_FIXED, help="Fix the basis, learn the coefficients.")
    ] = False,
    steering: Annotated[
        str | None,
        Option(metavar="FILE", rich_help_panel=_FIXED, help="Of Steering.save, for guided_, svd_, dct_steer."),
    ] = None,
    device: Device = "auto",
    memory: Annotated[
        str,
        Option(metavar="MODE", rich_help_panel=MACHINE, help="off, exact, recompute, int8: keep less."),
    ] = "off",
    stream: Annotated[
        int | None,
        Option(metavar="PIXELS", rich_help_panel=MACHINE, help="Run images by tiles; freezes BatchNorm's statistics."),
    ] = None,
    amp: Annotated[
        str, Option(metavar="TYPE", rich_help_panel=MACHINE, help="Mixed precision: off, bf16, fp16.")
    ] = "off",
    accumulate: Annotated[int, Option(metavar="N", rich_help_panel=MACHINE, help="Steps per update.")] = 1,
    workers: Annotated[int, Option(metavar="N", rich_help_panel=MACHINE, help="Processes that load images.")] = 0,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train networks with fixed and with learned filters, side by side.
    You get a table of test scores, time, parameters and memory; in --out, results.json, curves.png, and for each
    network checkpoint.pt, model.pt, log.jsonl.
    """
    from explainfix_ext.training import distributed
    from explainfix_ext.training.config import TrainConfig

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
        stream=stream,
        epoch_size=epoch_size,
        loss=loss,
        augment=augment,
    )
    names = [name.strip() for value in init for name in value.split(",")]
    _train(base, names, out, context.obj, resume=resume, device=device, workers=workers, as_json=as_json)


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
    from explainfix_ext._support.files import check_writable
    from explainfix_ext._support.pictures import check_drawable
    from explainfix_ext.training import distributed
    from explainfix_ext.training.curves import plot_curves
    from explainfix_ext.training.runs import train_networks

    from .progress import console, working
    from .tables import memory_lines, results_table, score_lines, task_tables

    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    configs = [dataclasses.replace(base, init=init) for init in inits]
    main = distributed.rank() == 0
    if main:
        check_drawable()
        check_writable(out / "curves.png")
    shown = working(as_json, f"to go on: {_resume_command(argv)}") if main else contextlib.nullcontext()
    with shown as observer:
        results = train_networks(configs, out, resume=resume, device=device, workers=workers, observer=observer)
    if not main:
        return
    plot_curves(results, out / "curves.png")
    if as_json:
        print(json.dumps(results))
        return
    console().print(results_table(results))
    for tasks in task_tables(results):
        console().print(tasks)
    for line in (*score_lines(results), *memory_lines(results)):
        print(line)
    print(f"curves: {out / 'curves.png'}\nall numbers: {out / 'results.json'}")


def _resume_command(argv: list[str]) -> str:
    """Returns the command that was given, with --resume added."""
    return shlex.join(["explainfix", *argv, *(["--resume"] if "--resume" not in argv else [])])
