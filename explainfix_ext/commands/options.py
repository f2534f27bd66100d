"""Defines the options that several commands have, so that they have one help text."""

from __future__ import annotations

from typing import Annotated

from typer import Option

Json = Annotated[bool, Option("--json", help="Print the results as JSON on stdout, and nothing else there.")]
Device = Annotated[str, Option(help="Where to run: auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, Option(help="Seed for the data split, weights, filters and the order of the images.")]
Resume = Annotated[bool, Option("--resume", help="Go on from the last whole checkpoint of each network in --out.")]
