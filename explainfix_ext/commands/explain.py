"""Defines `explainfix explain`: its options and what it prints. The report itself is made in commands/webpage/."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from explainfix_ext._support.files import check_writable, write_atomic
from explainfix_ext.commands.webpage.explained import Explained
from explainfix_ext.commands.webpage.findings import findings
from explainfix_ext.commands.webpage.run import explain as explain_network
from explainfix_ext.commands.webpage.subject import ExplainConfig

from .options import Device, Json
from .tables import ProgressBar, amounts_table, console

_HEAD = 1024  # bytes of a file that are searched for the name of the program that wrote it


def explain(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="OUT/NETWORK/checkpoint.pt of `explainfix train` or `demo`; or a --model of train."),
    ],
    html: Annotated[Path, Option(help="File to write. A former report is replaced, any other file is not.")] = Path(
        "report.html"
    ),
    data: Annotated[
        str | None, Option(help="Data set, as for train (default: the checkpoint's; none for a model's name).")
    ] = None,
    init: Annotated[str | None, Option(help="How to fix the filters, as for train. Only for a model's name.")] = None,
    weights: Annotated[
        Path | None,
        Option(
            help="state_dict to load, .pt, .pth or .safetensors (default: random weights). Only for a model's name."
        ),
    ] = None,
    size: Annotated[
        str | None, Option(help="Image size without --data: PIXELS or CHANNELSxHEIGHTxWIDTH (default: 3x224x224).")
    ] = None,
    classes: Annotated[int | None, Option(help="Number of classes without --data (default: 1000).")] = None,
    batches: Annotated[int, Option(help="Batches of training images on which saliency is computed.")] = 20,
    seed: Annotated[int, Option(help="Seed for weights, filters and data split. Only for a model's name.")] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain a network on one web page: its frequencies, filters, memory, and what pruning would leave.

    The page is a single file that loads nothing. What cannot be made is named in it, with the reason.
    """
    config = ExplainConfig(
        model=model,
        data=data,
        init=init,
        weights=weights,
        size=size,
        classes=classes,
        batches=batches,
        seed=seed,
        device=device,
    )
    check_report(html)
    from explainfix_ext.commands.webpage.page import report_page

    command = shlex.join(["explainfix", *context.obj])
    with contextlib.redirect_stdout(sys.stderr), ProgressBar() as observer:
        found = explain_network(config, command, observer)
        text = report_page(found)  # before anything is printed: it adds to found.missing
    write_atomic(html, lambda file: file.write(text.encode()))
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        _print(found)
        print(f"report: {html}")


def _print(found: Explained) -> None:
    for line in findings(found):
        print(f"- {line}")
    if any(pruned.report is not None for pruned in found.pruned):
        console().print(amounts_table(found.as_dict()))
    for part, reason in found.missing.items():
        print(f"not in the report: {part}: {reason}")


def check_report(path: Path) -> None:
    """Checks, before the work, that the report can be written to `path`: only a former report is replaced.

    Raises:
        ValueError: matplotlib is not installed.
        FileExistsError: there is something that is not a report.
        OSError: no file can be written there.
    """
    try:
        from explainfix_ext.commands.webpage.page import GENERATOR
    except ImportError:
        raise ValueError('a report needs matplotlib: pip install "explainfix_ext[demo]"') from None
    if path.is_dir():
        raise FileExistsError(f"{path} is there, and is no report: choose another --html")
    check_writable(path)
    if not path.exists():
        return
    mark = f'<meta name="generator" content="{GENERATOR}">'.encode()
    if not path.is_file() or mark not in path.read_bytes()[:_HEAD]:
        raise FileExistsError(f"{path} is there, and is no report: choose another --html")
