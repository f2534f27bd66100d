"""Test scores of the runs by what was run, their mean and spread over seeds, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POINT = 0.01  # scores are shares; a point is a hundredth


@dataclass(frozen=True)
class Score:
    """Of one network over seeds: `values` one each, `diverged` how many have none, the loss being no longer finite."""

    values: tuple[float, ...]
    diverged: int = 0

    @property
    def mean(self) -> float:
        """NaN if a seed diverged: the mean of the others would flatter."""
        return statistics.mean(self.values) if self.values and not self.diverged else float("nan")

    def reaches(self, other: Score) -> bool:
        """Within a point of it, or better; not if a seed diverged."""
        return self.mean >= other.mean - POINT

    def minus(self, other: Score) -> float:
        """In points."""
        return (self.mean - other.mean) / POINT

    def __str__(self) -> str:
        if self.diverged:
            return f"diverged ({self.diverged} of {self.diverged + len(self.values)})"
        spread = f" ± {statistics.stdev(self.values) / POINT:.1f}" if len(self.values) > 1 else ""
        return f"{self.mean / POINT:.1f}{spread}" if self.values else "-"


def trained(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The training runs, with what a table selects by: data, model, width, label, lr, seed."""
    rows = []
    for job in found["jobs"]:
        if job["kind"] not in ("trained", "diverged") or job["job"]["prune"] is not None:
            continue
        config = job["job"]
        model, _, width = config["model"].partition("@")
        label = config["init"] + "+pointwise" * config["pointwise"]
        about = {"model": model, "width": float(width or 1), "label": label, "lr": config["lr"], "seed": config["seed"]}
        rows.append({**job, **about})
    return rows


def pruned(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pruning runs, with init, amount, criterion, and whether channels were removed."""
    keys = ("amount", "criterion", "structured")
    return [
        {**job, "init": job["job"]["init"], **{key: job["job"]["prune"][key] for key in keys}}
        for job in found["jobs"]
        if job["kind"] in ("pruned", "diverged") and job["job"]["prune"] is not None
    ]


def select(rows: Iterable[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def score(rows: Sequence[Mapping[str, Any]], stage: str | None = None) -> Score:
    """stage: of a pruning run: unpruned, pruned or fine_tuned."""
    good = [row for row in rows if row["kind"] != "diverged"]
    tests = [row["test"] if stage is None else row["test"][stage] for row in good]
    return Score(tuple(t[r["metric"]] for t, r in zip(tests, good, strict=True)), len(rows) - len(good))


def in_order(rows: Iterable[Mapping[str, Any]], key: str, order: Sequence[Any] = ()) -> list[Any]:
    """The values of `key` that there are: those of `order` first, then the others as they sort."""
    there = {row[key] for row in rows}
    return [value for value in order if value in there] + sorted(there.difference(order))
