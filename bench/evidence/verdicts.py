"""What the page says of each claim: the paper's words, what was run, tables, and verdicts computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Any]  # claims.json
Table = tuple[str, list[str], list[list[str]]]  # caption, head, rows


@dataclass(frozen=True)
class Verdict:
    """On one sentence of the paper (its abstract, arXiv 2303.10408): in how many of the cases it was found true."""

    claim: str
    asked: str
    hits: Sequence[bool]

    def __str__(self) -> str:
        word = "Holds" if all(self.hits) else "Holds in part" if any(self.hits) else "Does not hold here"
        return f"**{word}**: {self.asked} in {sum(self.hits)} of {len(self.hits)}."


@dataclass(frozen=True)
class Section:
    """done: what was run; found: figures that the tables do not show at a glance."""

    key: str
    title: str
    verdicts: Sequence[Verdict]
    done: str
    tables: Sequence[Table]
    found: str
