"""What the page says of each claim: the paper's words, what was run, tables, and verdicts computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Any]  # claims.json
Table = tuple[str, list[str], list[list[str]]]  # caption, head, rows


@dataclass(frozen=True)
class Verdict:
    """On one sentence of the paper (its abstract, arXiv 2303.10408): in how many of the cases it was found true.

    Attributes:
        asked: what was counted, as the rest of "it was found that ...".
        possible: the paper says "up to": one case is enough.
    """

    claim: str
    asked: str
    hits: Sequence[bool]
    possible: bool = False

    def __str__(self) -> str:
        if not self.hits:
            return "**Not tested.**"
        share = sum(self.hits) / len(self.hits)
        if share == 1 or (self.possible and share):
            word = "Holds"
        elif share in (0, 0.5):
            word = "Holds in half" if share else "Does not hold here"
        else:
            word = "Mostly holds" if share > 0.5 else "Mostly fails"
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
