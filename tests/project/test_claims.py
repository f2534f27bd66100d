"""bench/claims.py: jobs run once, verdicts follow the numbers, and the committed page is of the committed numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.paths import BENCH

RESULTS = BENCH / "results" / "claims"

for package in ("rich", "timm", "segmentation_models_pytorch", "mlxtend", "matplotlib", "torchmetrics"):
    pytest.importorskip(package, reason='needs the extra "demo"')


@pytest.fixture(autouse=True)
def _neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)


# Scores and verdicts --------------------------------------------------------------------------------------------------


def test_a_score_reaches_another_from_a_point_below() -> None:
    from evidence.scores import Score

    learned = Score((0.90, 0.92))
    assert str(learned) == "91.0 ± 1.4"
    assert Score((0.9001,)).reaches(learned)
    assert not Score((0.8999,)).reaches(learned)
    assert Score((0.89,)).minus(learned) == pytest.approx(-2)


def test_a_network_that_diverged_once_reaches_nothing() -> None:
    from evidence.scores import Score, score

    rows = [{"kind": "trained", "metric": "auroc", "test": {"auroc": 0.99}}, {"kind": "diverged"}]
    found = score(rows)
    assert str(found) == "diverged (1 of 2)"
    assert not found.reaches(Score((0.1,)))


@pytest.mark.parametrize(
    ("hits", "word"),
    [
        ([True, True], "**Holds**: it does in 2 of 2."),
        ([True, True, False], "**Mostly holds**: it does in 2 of 3."),
        ([True, False], "**Holds in half**: it does in 1 of 2."),
        ([True, False, False], "**Mostly fails**: it does in 1 of 3."),
        ([False], "**Does not hold here**: it does in 0 of 1."),
        ([], "**Not tested.**"),
    ],
)
def test_a_verdict_counts(hits: list[bool], word: str) -> None:
    from evidence.verdicts import Verdict

    assert str(Verdict("a claim", "it does", hits)) == word
    assert str(Verdict("a claim", "it does", [True, False, False], possible=True)).startswith("**Holds**")


# Jobs -----------------------------------------------------------------------------------------------------------------

SPECS = {"pneumonia": "mnist5k", "mnist5k": "mnist5k", "nuclei": "mnist5k"}


def test_every_job_comes_once_and_after_what_it_needs() -> None:
    from evidence import jobs

    for scale, count in ((jobs.FULL, 453), (jobs.QUICK, 94)):
        done: set[str] = set()
        for wave in jobs.all_jobs(scale, SPECS, Path("runs")):
            assert all(job.after is None or job.after in done for job in wave)
            names = [job.name for job in wave]
            assert len(set(names)) == len(names)
            assert not done.intersection(names)
            done.update(names)
        assert len(done) == count


def _tiny() -> Any:
    from evidence import jobs

    return dataclasses.replace(jobs.QUICK, epochs=dict.fromkeys(SPECS, 1), limit=64, amounts=(0.5,), tuning=1)


def _of_one_network(scale: Any, runs: Path) -> Iterator[Any]:
    """A learned network, and what is made of it: one with filters like its, spectra, a pruned one."""
    from evidence import jobs

    for wave in jobs.all_jobs(scale, SPECS, runs):
        for job in wave:
            here = job.data == "pneumonia" and job.config.model == "bottleneck" and job.config.lr == jobs.USUAL_RATE
            scored = job.prune is None or job.prune.criterion == "explainfix"
            if here and scored and job.config.init in ("learned", "guided_steer"):
                yield job


def test_jobs_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evidence import jobs

    chosen = list(_of_one_network(_tiny(), tmp_path))
    found = [jobs.run(job, tmp_path) for job in chosen]
    assert {row["kind"] for row in found} == {"trained", "spectra", "pruned"}
    assert any(row["job"]["init"] == "guided_steer" for row in found)
    assert all(0 <= row["test"]["accuracy"] <= 1 for row in found if row["kind"] == "trained")
    monkeypatch.setattr(jobs, "_made", lambda *_: pytest.fail("a job that is done was run again"))
    assert [jobs.run(job, tmp_path) for job in chosen] == found
    other = dataclasses.replace(chosen[0], config=dataclasses.replace(chosen[0].config, epochs=2))
    with pytest.raises(ValueError, match="another configuration: choose another --runs"):
        jobs.run(other, tmp_path)


def test_a_run_that_diverges_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evidence import jobs

    def diverge(*_: Any, **__: Any) -> None:
        raise FloatingPointError("the loss became nan")

    monkeypatch.setattr(jobs, "train_networks", diverge)
    job = next(iter(_of_one_network(_tiny(), tmp_path)))
    assert jobs.run(job, tmp_path)["kind"] == "diverged"


# The committed results ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return json.loads((RESULTS / "claims.json").read_text())


def test_the_committed_page_is_of_the_committed_numbers(found: dict[str, Any], tmp_path: Path) -> None:
    from evidence import page

    page.write(found, tmp_path)
    assert (tmp_path / "claims.md").read_text() == (RESULTS / "claims.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in RESULTS.iterdir()} - {"claims.json"}


FIXED = ("dct2", "dct2@0.1", "ghaar4_s1", "psine", "guided_steer")


def altered(found: dict[str, Any], value: float, inits: Any, **wanted: Any) -> dict[str, Any]:
    """A copy in which the scores of some runs, pruned ones among them, are `value`."""
    changed = json.loads(json.dumps(found))
    for row in changed["jobs"]:
        job = row.get("job", {})
        given = job.get("prune") or {}
        if row["kind"] not in ("trained", "pruned") or job["init"] not in inits:
            continue
        if all(test(job.get(key, given.get(key))) for key, test in wanted.items()):
            for scores in (
                [row["test"]] if row["kind"] == "trained" else [row["test"]["pruned"], row["test"]["fine_tuned"]]
            ):
                scores[row["metric"]] = value
    return changed


@pytest.mark.parametrize(("value", "held"), [(0.0, False), (1.0, True)])
def test_verdicts_on_scores_follow_the_numbers(found: dict[str, Any], value: float, held: bool) -> None:
    from evidence import accuracy, filters

    def hits(section: Any, which: int = 0) -> bool:
        given = section.verdicts[which].hits
        assert len(set(given)) == 1
        return given[0]

    best = altered(found, value, FIXED)
    assert [hits(accuracy.fixed(best), which) for which in (0, 1)] == [held, held]
    wide = altered(found, value, FIXED, model=lambda name: "@" in name)
    assert hits(accuracy.sizes(wide)) == held
    fast = altered(found, value, ("learned",), lr=lambda rate: rate > 3e-3)
    assert hits(accuracy.rates(fast)) == (not held)
    few = altered(altered(found, value, ("dct2",), amount=lambda a: a is not None and a > 0), value, ("dct2@0.01",))
    assert [hits(filters.few(few), which) for which in (0, 1, 2)] == [held] * 3


def test_verdicts_on_spectra_and_times_follow_the_numbers(found: dict[str, Any]) -> None:
    from evidence import filters

    flat = json.loads(json.dumps(found))
    for row in flat["jobs"]:
        for layers in row.get("spectra", {}).values():
            for layer in layers.values():
                layer["low"] = layer["flat"]
    assert not any(any(verdict.hits) for verdict in filters.frequencies(flat).verdicts)
    slow = json.loads(json.dumps(found))
    for row in slow["times"]:
        row["seconds"]["dct2, 90 % pruned"] = row["seconds"]["learned"]
    assert not any(filters.times(slow).verdicts[0].hits)


def test_all_seeds_and_networks_are_there(found: dict[str, Any]) -> None:
    from evidence import jobs
    from evidence.accuracy import usual

    assert not found["quick"]
    for _, _, scores in usual(found):
        assert set(jobs.FULL.inits) <= set(scores)
        assert all(len(s.values) + s.diverged == len(jobs.FULL.seeds) for s in scores.values())
