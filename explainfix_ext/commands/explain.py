"""`explainfix explain`: options, progress, tables. What it does is in training/explain_run.py and explain_page.py."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from explainfix_ext._support.files import write_atomic
from explainfix_ext.commands.webpage.findings import findings
from explainfix_ext.commands.webpage.run import ExplainConfig
from explainfix_ext.commands.webpage.run import explain as explain_network

from .options import Device, Json
from .tables import ProgressBar, amounts_table, console

_HEAD = 1024  # bytes of a file in which its maker is named


def explain(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="OUT/NETWORK/checkpoint.pt of `explainfix train` or `demo`, or a model as train takes it."),
    ],
    html: Annotated[Path, Option(help="The report; a former report is replaced, any other file is not.")] = Path(
        "report.html"
    ),
    data: Annotated[str | None, Option(help="As train takes it; by default the checkpoint's, or none.")] = None,
    init: Annotated[str | None, Option(help="Of a model's name: fix its filters, as train does.")] = None,
    weights: Annotated[
        Path | None, Option(help="Of a model's name: its state_dict, .pt, .pth or .safetensors; else they are random.")
    ] = None,
    size: Annotated[
        str | None, Option(help="Of a model without data: PIXELS or CHANNELSxHEIGHTxWIDTH; by default 3x224x224.")
    ] = None,
    classes: Annotated[int | None, Option(help="Of a model without data; by default 1000.")] = None,
    batches: Annotated[int, Option(help="Batches of training images on which filters are weighed.")] = 20,
    seed: Annotated[int, Option(help="Of a model's name: of weights, filters and data split.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain a network on one web page: its frequencies, filters, memory, and what pruning would leave.

    The page is a single file that loads nothing. What cannot be made is named in it, with the reason.
    """
    config = ExplainConfig(model, data, init, weights, size, classes, batches, seed, device)
    check_report(html)
    from explainfix_ext.commands.webpage.page import report_page

    command = shlex.join(["explainfix", *context.obj])
    with contextlib.redirect_stdout(sys.stderr), ProgressBar() as observer:
        found = explain_network(config, command, observer)
        text = report_page(found)
    write_atomic(html, lambda file: file.write(text.encode()))
    if as_json:
        print(json.dumps(found.as_dict()))
        return
    for line in findings(found):
        print(f"- {line}")
    if any(pruned.report is not None for pruned in found.pruned):
        console().print(amounts_table(found.as_dict()))
    for part, reason in found.missing.items():
        print(f"not in the report: {part}: {reason}")
    print(f"report: {html}")


def check_report(path: Path) -> None:
    """Refuse to write where something else than a report is.

    Raises:
        ValueError: matplotlib is not installed.
        FileExistsError, NotADirectoryError: there is another file, or a folder, or a file where a folder should be.
    """
    try:
        from explainfix_ext.commands.webpage.page import GENERATOR
    except ImportError:
        raise ValueError('a report needs matplotlib: pip install "explainfix_ext[demo]"') from None
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"html must be in a folder, {folder} is a file")
    if not path.exists():
        return
    mark = f'<meta name="generator" content="{GENERATOR}">'.encode()
    if not path.is_file() or mark not in path.read_bytes()[:_HEAD]:
        raise FileExistsError(f"{path} is there, and is no report: choose another --html")
