"""Defines `explainfix memory`: its options and what it prints. `efx.memory_plan` counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from .options import HOW, OUTPUT, Json

_WHAT = "What to count"  # a group of options in the help


def memory(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", rich_help_panel=_WHAT, help="The name of a model, as for train --model.")
    ],
    size: Annotated[int, Option(metavar="N", rich_help_panel=_WHAT, help="Height and width of the images.")] = 224,
    batch: Annotated[int, Option(metavar="N", rich_help_panel=_WHAT, help="Images a step.")] = 8,
    budget: Annotated[
        str, Option(metavar="SIZE", rich_help_panel=_WHAT, help="Memory that there is: 24GiB, 80GB, 512MiB.")
    ] = "24GiB",
    init: Annotated[
        str, Option(metavar="INIT", rich_help_panel=HOW, help="How to fix the filters, or learned; as for train.")
    ] = "auto",
    channels: Annotated[int, Option(metavar="N", rich_help_panel=HOW, help="Channels of the images.")] = 3,
    classes: Annotated[int, Option(metavar="N", rich_help_panel=HOW, help="Outputs of the network.")] = 1000,
    optimizer: Annotated[
        str, Option(metavar="NAME", rich_help_panel=HOW, help="adamw, or sgd with momentum.")
    ] = "adamw",
    amp: Annotated[str, Option(metavar="TYPE", rich_help_panel=HOW, help="Mixed precision: off, bf16, fp16.")] = "off",
    plot: Annotated[Path | None, Option(metavar="FILE.png", rich_help_panel=OUTPUT, help="Draw the plan.")] = None,
    as_json: Json = False,
) -> None:
    """Say which memory mode and batch of a training fit a card.
    You get a table of what each mode of train --memory takes, and the largest batch within the budget. Nothing is run:
    bytes are counted from shapes, on any machine; a ResNet-50 takes about a minute.
    """
    import torch

    from explainfix_ext._support.files import check_writable
    from explainfix_ext._support.pictures import check_drawable
    from explainfix_ext.conversion.convert import convert
    from explainfix_ext.memory.budget import memory_plan
    from explainfix_ext.memory.budget.arithmetic import parse_bytes
    from explainfix_ext.training.config import TrainConfig
    from explainfix_ext.training.models import build_model

    from .progress import console, working
    from .tables import plan_table

    config = TrainConfig(model=model, data="none", init=init, amp=amp)  # checks them
    limit = parse_bytes(budget)
    if plot is not None:
        check_writable(plot)
        check_drawable()
    network = build_model(model, channels, classes)
    name, options = config.init_and_options
    if name != "learned":
        convert(network, name, seed=0, **options)
    with working(as_json, "nothing was written") as bar:
        bar.stage(model, 1)
        dtype = None if amp == "off" else torch.bfloat16  # fp16 takes the same bytes
        plan = memory_plan(network, (channels, size, size), batch, limit, optimizer=optimizer, amp=dtype)
    if plot is not None:
        plan.plot(plot)
    if as_json:
        print(json.dumps({"model": model, "init": init, **plan.as_dict()}))
        return
    console().print(plan_table(f"{model}, {init}: batch {batch} at {size} pixels", plan))
    print(*plan.notes(), sep="\n")
    if plot is not None:
        print(f"picture: {plot}")
