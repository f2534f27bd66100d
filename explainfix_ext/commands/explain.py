"""Defines `explainfix explain`: its options and what it prints. The report itself is made in commands/webpage/."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from .options import Device, Json, list_data

if TYPE_CHECKING:
    from explainfix_ext.commands.webpage.explained import Explained
    from explainfix_ext.commands.webpage.subject import ExplainConfig
    from explainfix_ext.training.observer import Observer

_WHAT, _NAME = "What to explain", "Only where MODEL is a name"  # groups of options in the help
_HEAD = 1024  # bytes of a file that are searched for the name of the program that wrote it


def explain(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            rich_help_panel=_WHAT,
            help="OUT/NETWORK/checkpoint.pt of `explainfix train` or `demo`; or the name of a model, as "
            "for train --model.",
        ),
    ],
    html: Annotated[
        Path,
        Option(
            metavar="FILE",
            rich_help_panel=_WHAT,
            help="The page. A former report is replaced, any other file is not.",
        ),
    ] = Path("report.html"),
    data: Annotated[
        str | None,
        Option(
            metavar="DATA",
            is_eager=True,
            callback=list_data,
            rich_help_panel=_WHAT,
            help="As for train; default: the checkpoint's, none for a name.",
        ),
    ] = None,
    batches: Annotated[
        int, Option(metavar="N", rich_help_panel=_WHAT, help="Batches of training images for saliency.")
    ] = 20,
    init: Annotated[
        str | None, Option(metavar="INIT", rich_help_panel=_NAME, help="How to fix the filters, as for train.")
    ] = None,
    weights: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            rich_help_panel=_NAME,
            help="A state_dict, .pt, .pth or .safetensors; default: random weights.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        Option(
            metavar="SIZE",
            rich_help_panel=_NAME,
            help="Images without --data: PIXELS or CHANNELSxHEIGHTxWIDTH; default: 3x224x224.",
        ),
    ] = None,
    classes: Annotated[
        int | None, Option(metavar="N", rich_help_panel=_NAME, help="Classes without --data; default: 1000.")
    ] = None,
    seed: Annotated[
        int, Option(metavar="N", rich_help_panel=_NAME, help="Seed of weights, filters and data split.")
    ] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Explain a network on a web page: frequencies, memory, pruning.
    You get a single file that loads nothing, and its findings as text; what cannot be made is named, with the reason.
    """
    from explainfix_ext.commands.webpage.subject import ExplainConfig

    from .progress import working

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
    with working(as_json, "nothing was written") as observer:
        found = write_report(config, html, shlex.join(["explainfix", *context.obj]), observer)
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        _print(found)
        print(f"report: {html}")


def write_report(config: ExplainConfig, html: Path, command: str, observer: Observer) -> Explained:
    """Explains a network on a page, which is written at the end, and returns what it shows.

    Args:
        config: names the network and its data.
        html: the page; `check_report` says whether it can be written.
        command: the command line that asked for it, for the page.
        observer: is told of the progress.

    Raises:
        ValueError, OSError: the input is bad.
    """
    from explainfix_ext._support.files import write_atomic
    from explainfix_ext.commands.webpage.page import report_page
    from explainfix_ext.commands.webpage.run import explain as explain_network

    found = explain_network(config, command, observer)
    observer.stage("drawing the page", 1)
    text = report_page(found)  # before anything is printed: it adds to found.missing
    write_atomic(html, lambda file: file.write(text.encode()))
    return found


def _print(found: Explained) -> None:
    from explainfix_ext.commands.webpage.findings import findings

    from .progress import console
    from .tables import amounts_table

    out = console()
    for line in findings(found):
        out.print(f"- {line}", markup=False, soft_wrap=not out.is_terminal)
    if any(pruned.report is not None for pruned in found.pruned):
        out.print(amounts_table(found.as_dict()))
    for part, reason in found.missing.items():
        print(f"not in the report: {part}: {reason}")


def check_report(path: Path, option: str = "--html") -> None:
    """Checks, before the work, that the report can be written to `path`, of `option`: only a former one is replaced.

    Raises:
        ValueError: matplotlib is not installed.
        FileExistsError: there is something that is not a report.
        OSError: no file can be written there.
    """
    from explainfix_ext._support.files import check_writable
    from explainfix_ext._support.pictures import check_drawable
    from explainfix_ext.commands.webpage.html import GENERATOR

    check_drawable()
    if path.is_dir():
        raise FileExistsError(f"{path} is there, and is no report: choose another {option}")
    check_writable(path)
    if not path.exists():
        return
    mark = f'<meta name="generator" content="{GENERATOR}">'.encode()
    if not path.is_file() or mark not in path.read_bytes()[:_HEAD]:
        raise FileExistsError(f"{path} is there, and is no report: choose another {option}")
