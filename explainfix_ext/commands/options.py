"""Defines the options that several commands have, so that they have one help text."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Option

HOW, OUTPUT, MACHINE = "How", "Output", "Speed and memory"  # groups of options in the help, see command.py

Json = Annotated[bool, Option("--json", rich_help_panel=OUTPUT, help="Print JSON on stdout, and nothing else there.")]
Device = Annotated[str, Option(metavar="DEVICE", rich_help_panel=MACHINE, help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, Option(metavar="N", rich_help_panel=HOW, help="Seed of all that is random.")]
Resume = Annotated[bool, Option("--resume", rich_help_panel=OUTPUT, help="Go on from the checkpoints in --out.")]


def list_data(value: str | None) -> str | None:
    """Prints all forms of --data if that is "list", and ends the program; returns any other value."""
    if value == "list":
        from explainfix_ext.training.sources.readers import describe_forms

        print(*describe_forms(), sep="\n")
        raise typer.Exit
    return value


def list_models(value: str) -> str:
    """Prints all forms of --model if that is "list", and ends the program; returns any other value."""
    if value == "list":
        from explainfix_ext.training.model_names import describe_models
        from explainfix_ext.training.models import PRESETS

        print(*describe_models(PRESETS), sep="\n")
        raise typer.Exit
    return value
