"""claims.md: each claim in the paper's words, what was run, a table, a picture and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from . import accuracy, filters, pictures
from .jobs import FULL, QUICK
from .verdicts import Found, Section, Table

SECTIONS: tuple[Callable[[Found], Section], ...] = (
    accuracy.fixed, filters.few, accuracy.rates, accuracy.sizes, filters.frequencies, filters.times
)  # fmt: skip


def write(found: Found, out: Path) -> None:
    """Write OUT/claims.md and a picture for each claim."""
    made = [make(found) for make in SECTIONS]
    for section in made:
        pictures.DRAW[section.key](found).savefig(out / f"claim_{section.key}.png")
    (out / "claims.md").write_text("\n".join(_lines(found, made)))


def _lines(found: Found, made: list[Section]) -> Iterator[str]:
    scale = QUICK if found["quick"] else FULL
    epochs = ", ".join(f"{data} {count}" for data, count in scale.epochs.items())
    yield "# The paper's claims, on real data\n"
    yield "Made by `python bench/claims.py" + " --quick" * found["quick"] + "`; every number is in `claims.json`.\n"
    yield (
        f"Seeds: {', '.join(map(str, scale.seeds))} (scores: mean ± standard deviation over them). Epochs: {epochs}."
        + (f" Training images: at most {scale.limit:,}." if scale.limit else "")
        + " Small networks, small images, short training: what holds here need not hold at scale, nor the reverse. "
        "A network reaches another if its mean is at most a point (0.01) lower, or higher. There are 624 test images "
        "of pneumonia, 500 of MNIST, 33 of nuclei, so a standard error of one score is about a point, too; the seed "
        "also draws the split of the last two. The paper's words are those of its abstract (arXiv 2303.10408); the "
        "verdicts are computed.\n"
    )
    verdicts = [[f"({s.key}) {v.claim}", str(v)] for s in made for v in s.verdicts]
    yield from _table(("In short", ["the paper", "here"], verdicts))
    for section in made:
        yield f"## ({section.key}) {section.title}\n"
        yield f"{section.done}\n"
        for table in section.tables:
            yield from _table(table)
        yield f"![{section.title}](claim_{section.key}.png)\n"
        yield from (f"> {verdict.claim}\n\n{verdict}\n" for verdict in section.verdicts)
        if section.found:
            yield f"{section.found}\n"
    machine = {**found["hardware"], **found["versions"]}
    yield ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None) + "\n"


def _table(table: Table) -> Iterator[str]:
    caption, head, rows = table
    yield f"{caption}:\n"
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""
