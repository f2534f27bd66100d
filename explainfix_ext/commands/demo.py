"""Defines `explainfix demo`: its options and what it prints. `gains.py` trains and measures."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from pathlib import Path
from typing import Annotated

from typer import Option

from .options import HOW, Device, Json, Seed


def demo(
    out: Annotated[
        Path | None, Option(metavar="FOLDER", help="Folder for the results; default: a new one, explainfix-demo.")
    ] = None,
    quick: Annotated[
        bool, Option("--quick", rich_help_panel=HOW, help="45 seconds: two epochs of 768 training images.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show what fixing filters gains, on real images, in 3 minutes.
    One network is trained on 5,000 images of MNIST: learned, fixed, fixed with less memory, fixed and 90 % pruned. You
    get a table of accuracy, time, memory and size; in --out, demo.png, and report.html about the fixed network.
    """
    from explainfix_ext.training.config import TrainConfig
    from explainfix_ext.training.prune_checkpoint import PruneConfig

    from .gains import compare
    from .gains_shown import gains_lines, gains_table
    from .progress import console, working

    out = out or _new_folder("explainfix-demo")
    short = {"epochs": 2, "limit": 768, "batch_size": 32} if quick else {"epochs": 3}
    base = TrainConfig(model="basicblock@4", pointwise=True, seed=seed, **short)  # type: ignore[arg-type]
    prune = PruneConfig(amount=0.9, batches=2 if quick else 5, epochs=2)
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        warnings.warn("the machine is busy: times in the table will be off", stacklevel=2)
    with working(as_json, f"to start again, take another --out than {out}") as observer:
        results = compare(base, prune, out, device=device, observer=observer)
    if as_json:
        print(json.dumps(results))
        return
    console().print(gains_table(results))
    print(*gains_lines(results), sep="\n")
    print(f"picture: {out / 'demo.png'}\nall numbers: {out / 'demo.json'}\nthe fixed network: {out / 'report.html'}")


def _new_folder(name: str) -> Path:
    """Returns the first of `name`, name-2, name-3, ... that does not exist."""
    numbered = (Path(name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in numbered if not path.exists())
