"""Gathers the commands of `explainfix`. `cli.py` runs `app`; each command is a file of this folder."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from explainfix_ext.filters.choose_init import init_names
from explainfix_ext.ops.status import status as get_status

from .bench import bench
from .explain import explain
from .options import Json
from .prune import prune
from .tables import console
from .train import demo, train

app = typer.Typer(
    help="Convolutional networks with fixed spatial filters, beside the same networks learned.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


app.command(epilog="Example: explainfix train --init learned,dct2,dct2@0.1 --epochs 3 --limit 1000 --out runs/mnist")(
    train
)
app.command(epilog="Example: explainfix demo --out runs/demo")(demo)
app.command(epilog="Example: explainfix prune runs/demo/auto/checkpoint.pt --amount 0.8 --out runs/pruned")(prune)
app.command(epilog="Example: explainfix explain runs/demo/auto/checkpoint.pt --html report.html")(explain)


@app.command(epilog="Example: explainfix status")
def status(as_json: Json = False) -> None:
    """Show what runs here: versions, binaries, instruction set, GPU."""
    found = get_status()
    print(json.dumps(found.as_dict()) if as_json else found)


@app.command(epilog="Example: explainfix inits")
def inits(as_json: Json = False) -> None:
    """List the ways to make fixed filters, for --init."""
    if as_json:
        print(json.dumps(init_names()))
        return
    table = Table("init", "filters")
    for name, line in init_names().items():
        table.add_row(name, line)
    console().print(table)


app.command(epilog="Example: explainfix bench --cases 'lowrank-4of9-*' --threads 1 --quick")(bench)
