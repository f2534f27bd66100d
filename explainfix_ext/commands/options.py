"""Options that several commands of `explainfix` have."""

from __future__ import annotations

from typing import Annotated

from typer import Option

Json = Annotated[bool, Option("--json", help="Print the results as JSON on stdout, and nothing else there.")]
Device = Annotated[str, Option(help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int, Option(help="Of the data split, weights, filters and the order of the images.")]
Resume = Annotated[bool, Option("--resume", help="Go on from the last whole checkpoint of each network in --out.")]
