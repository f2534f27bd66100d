"""Gathers the commands of `explainfix`. `cli.py` runs `app`; each command is a file of this folder."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Annotated

import typer

from .bench import bench
from .command import Command
from .demo import demo
from .explain import explain
from .export import export
from .memory import memory
from .options import Json
from .prune import prune
from .train import train


def _print_version(asked: bool) -> None:
    if asked:
        print(f"explainfix_ext {version('explainfix_ext')}")
        raise typer.Exit


app = typer.Typer(
    help="Convolutional networks with fixed spatial filters, beside the same networks learned.",
    epilog="Each command has a --help. With --install-completion, TAB completes commands, options and files.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command(cls=Command, epilog="Example: explainfix demo --quick")(demo)
app.command(cls=Command, epilog="Example: explainfix train --init learned,dct2 --epochs 3 --out runs/mnist")(train)
app.command(cls=Command, epilog="Example: explainfix prune runs/mnist/dct2/checkpoint.pt --out runs/pruned")(prune)
app.command(cls=Command, epilog="Example: explainfix explain runs/mnist/dct2/checkpoint.pt --html report.html")(explain)
app.command(cls=Command, epilog="Example: explainfix memory torchvision:resnet50 --batch 64 --budget 24GiB")(memory)
app.command(cls=Command, epilog="Example: explainfix export runs/mnist/dct2/checkpoint.pt --to onnx --out net.onnx")(
    export
)


@app.command(cls=Command, epilog="Example: explainfix status")
def status(as_json: Json = False) -> None:
    """Show what runs here: versions, binaries, instruction set, GPU."""
    from explainfix_ext.ops.status import status as find_status

    found = find_status()
    print(json.dumps(found.as_dict()) if as_json else found)


@app.command(cls=Command, epilog="Example: explainfix inits")
def inits(as_json: Json = False) -> None:
    """List the ways to make fixed filters, for --init."""
    from rich.box import SIMPLE
    from rich.table import Table

    from explainfix_ext.filters.choose_init import init_names

    from .progress import console

    if as_json:
        print(json.dumps(init_names()))
        return
    table = Table("init", "filters", box=SIMPLE)
    for name, line in init_names().items():
        table.add_row(name, line)
    console().print(table)


app.command(cls=Command, epilog="Example: explainfix bench --cases 'lowrank-4of9-*' --threads 1 --quick")(bench)
