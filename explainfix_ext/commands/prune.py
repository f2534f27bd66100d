"""Defines `explainfix prune`: its options and what it prints. `training.prune_checkpoint` does the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from .options import HOW, Device, Json, list_data

_WHAT, _CHOICE = "What to prune", "Which filters go"  # groups of options in the help


def prune(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            rich_help_panel=_WHAT,
            help="OUT/NETWORK/checkpoint.pt of `explainfix train` or `demo`.",
        ),
    ],
    out: Annotated[Path, Option(metavar="FOLDER", rich_help_panel=_WHAT, help="Folder for the results, a new one.")],
    amount: Annotated[
        float, Option(metavar="SHARE", rich_help_panel=_WHAT, help="Share of the spatial filters to prune.")
    ] = 0.9,
    criterion: Annotated[
        str,
        Option(
            metavar="NAME",
            rich_help_panel=_WHAT,
            help="Score; the lowest are pruned: explainfix, taylor, l1, l2, bn_scale, hrank, nisp, response, obs or "
            "random.",
        ),
    ] = "explainfix",
    data: Annotated[
        str | None,
        Option(
            metavar="DATA",
            is_eager=True,
            callback=list_data,
            rich_help_panel=_WHAT,
            help="As for train; default: the training's.",
        ),
    ] = None,
    epochs: Annotated[int, Option(metavar="N", rich_help_panel=HOW, help="Epochs of fine-tuning; 0 for none.")] = 5,
    lr: Annotated[
        float | None,
        Option(metavar="RATE", rich_help_panel=HOW, help="Highest of fine-tuning; default: the training's."),
    ] = None,
    batches: Annotated[
        int, Option(metavar="N", rich_help_panel=HOW, help="Batches of training images to score on.")
    ] = 20,
    seed: Annotated[
        int | None,
        Option(metavar="N", rich_help_panel=HOW, help="Of image order and random; default: the training's."),
    ] = None,
    scope: Annotated[
        str,
        Option(
            metavar="SCOPE",
            rich_help_panel=_CHOICE,
            help="global: lowest scores of the whole network; layer: the same share of each layer.",
        ),
    ] = "global",
    granularity: Annotated[
        str | None,
        Option(
            metavar="UNIT",
            rich_help_panel=_CHOICE,
            help="filter: single filters; channel: all that write or read a channel. Default: channel for networks "
            "with hadamard filters (auto), else filter.",
        ),
    ] = None,
    weigh: Annotated[
        str,
        Option(metavar="BY", rich_help_panel=_CHOICE, help="score; or work: score per multiply-add, for speed."),
    ] = "score",
    unstructured: Annotated[
        bool,
        Option("--unstructured", rich_help_panel=_CHOICE, help="Only set filters to zero; remove no channel."),
    ] = False,
    bn_bias: Annotated[
        str,
        Option(
            metavar="WHAT",
            rich_help_panel=_CHOICE,
            help="A channel whose filters are all zero is a constant: keep, drop or fold it into biases.",
        ),
    ] = "drop",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Prune a trained network, verify, fine-tune and test it.
    You get tables of what each layer lost and of the test scores; in --out, model.pt with its plan.json, kept.png,
    log.jsonl, results.json.
    """
    from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint

    from .progress import console, working
    from .tables import pruning_lines, pruning_table, stages_table

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
    with working(as_json, f"to start again, take another --out than {out}") as observer:
        results = prune_checkpoint(checkpoint, out, config, data=data, device=device, observer=observer)
    if as_json:
        print(json.dumps(results))
        return
    console().print(pruning_table(results["report"]))
    print(*pruning_lines(results["report"]), sep="\n")
    console().print(stages_table(results))
    print(f"network: {out / 'model.pt'}, its plan: {out / 'plan.json'}")
    print(
        f"to load it into the network as trained: efx.apply_plan(network, json.load(open({str(out / 'plan.json')!r})))"
        f".load_state_dict(torch.load({str(out / 'model.pt')!r}))"
    )
    print(f"picture: {out / 'kept.png'}\nall numbers: {out / 'results.json'}")
