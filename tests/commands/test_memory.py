"""`explainfix memory`: a table, a picture and JSON of what fits."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')

LINE = "memory basicblock@0.25 --size 28 --channels 1 --classes 10 --batch 4"


def test_plan_is_shown_and_drawn(run, tmp_path):
    code, out, error = run(f"{LINE} --budget 20MiB --plot plan.png")
    assert (code, error.count("explainfix:")) == (0, 0)
    lines = [line.replace(", ", "+").split() for line in out.splitlines()]
    rows = {words[0]: words[1:] for words in lines if len(words) == 6 and words[1].isdigit()}
    assert rows.keys() == {"off", "exact", "recompute", "int8", "recompute+blocks"}
    assert all(row[3] == "yes" for row in rows.values())
    assert "Not counted" in out
    assert (tmp_path / "plan.png").stat().st_size > 5_000


def test_plan_as_json(run):
    code, out, error = run(f"{LINE} --amp bf16 --optimizer sgd --init learned --budget 64KiB --json")
    found = json.loads(out)
    assert (code, error) == (0, "")
    assert (found["batch"], found["budget"], found["shape"]) == (4, 2**16, [1, 28, 28])
    kept = {row["configuration"]["mode"]: row["kept"] for row in found["rows"]}
    assert kept["off"] > kept["exact"]
    assert not any(row["fits"] or row["largest_batch"] for row in found["rows"])
