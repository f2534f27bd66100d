"""Defines `explainfix prune`: its options and what it prints. `training.prune_checkpoint` does the work."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint

from .options import Device, Json
from .tables import ProgressBar, console, pruning_lines, pruning_table, stages_table


def prune(
    checkpoint: Annotated[Path, typer.Argument(help="OUT/NETWORK/checkpoint.pt of `explainfix train` or `demo`.")],
    out: Annotated[Path, Option(help="Folder for model.pt, plan.json, kept.png, log.jsonl and results.json.")],
    amount: Annotated[float, Option(help="Share of the spatial filters to prune.")] = 0.9,
    criterion: Annotated[
        str, Option(help="Score; the lowest are pruned: explainfix, taylor, l1, l2, bn_scale, hrank, nisp or random.")
    ] = "explainfix",
    data: Annotated[
        str | None, Option(help="Data set, as for train (default: the one that the network was trained on).")
    ] = None,
    scope: Annotated[
        str, Option(help="global: the lowest scores of the whole network; layer: the same share of each layer.")
    ] = "global",
    granularity: Annotated[
        str, Option(help="filter: single filters; channel: all filters that write or read a channel at once.")
    ] = "filter",
    weigh: Annotated[str, Option(help="score, or work: score per multiply-add, for faster networks.")] = "score",
    unstructured: Annotated[
        bool, Option("--unstructured", help="Only set filters to zero; remove no channel.")
    ] = False,
    bn_bias: Annotated[
        str,
        Option(help="A channel whose filters are all zero is a constant: keep it, drop it, or fold it into biases."),
    ] = "drop",
    epochs: Annotated[int, Option(help="Epochs of fine-tuning; 0 for none.")] = 5,
    lr: Annotated[float | None, Option(help="Highest learning rate of fine-tuning (default: the training's).")] = None,
    batches: Annotated[int, Option(help="Batches of training images on which filters are scored.")] = 20,
    device: Device = "auto",
    seed: Annotated[
        int | None, Option(help="Seed for the image order and for `--criterion random` (default: the training seed).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prune a trained network, verify that nothing else changed, fine-tune it, and test it at every stage."""
    config = PruneConfig(
        amount=amount,
        criterion=criterion,
        scope=scope,
        granularity=granularity,
        weigh=weigh,
        structured=not unstructured,
        bn_bias=bn_bias,
        batches=batches,
        epochs=epochs,
        lr=lr,
        seed=seed,
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
