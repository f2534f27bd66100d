"""What pruning costs in accuracy and saves in work.

    python bench/bench_prune.py accuracy --data ../shared/data/pneumoniamnist.npz [--runs RUNS] [--out FILE.json]
    python bench/bench_prune.py times --runs RUNS [--out FILE.json]
    python bench/bench_prune.py speed [--out FILE.json]

accuracy: trains the bottleneck network, learned and fixed, prunes the checkpoint, fine-tunes, tests. First 90 % with
three seeds, beside the same network fine-tuned without pruning; then one seed over amounts, criteria and ways of
pruning. What is in FILE.json or in RUNS already is not made again. times: step and inference of each pruned network
over the unpruned one's, interleaved, written into the same file. speed: ResNet-50, whole and pruned, learned and fixed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext._support.machine import hardware, versions
from explainfix_ext._support.timing import interleaved, keep_memory, ratio
from explainfix_ext.training.checkpoint import load_weights
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.network import make_network
from explainfix_ext.training.observer import Observer
from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint
from explainfix_ext.training.runs import train_networks
from explainfix_ext.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
INITS = ("learned", "dct2")
EPOCHS, TUNING, SWEEP_TUNING = 10, 10, 3
AMOUNTS = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
CRITERIA = ("explainfix", "random")
MORE_CRITERIA = ("taylor", "hrank", "nisp")  # at 90 %, of channels
WITHOUT_LABELS = ("response", "obs")  # of single filters
STYLES = {"explainfix": "o-", "random": "x:", "response": "s--", "obs": "^-."}
WAYS: dict[str, dict[str, Any]] = {
    "filters": {"granularity": "filter"},
    "channels": {"granularity": "channel"},
    "channels by work": {"granularity": "channel", "weigh": "work"},
    "unstructured": {"structured": False},
}


def accuracy(data: str, runs: Path, out: Path) -> None:
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if out.exists() else []
    known = {row["name"] for row in rows}
    for name, seed, init, config in track([job for job in _jobs() if job[0] not in known], "prune and fine-tune"):
        trained = runs / f"seed{seed}" / init
        if not (trained / "model.pt").exists():
            configs = [TrainConfig(data=data, init=init, epochs=EPOCHS, seed=seed)]
            train_networks(configs, trained.parent, resume=True, device="cpu")
        folder = runs / name
        if not (folder / "results.json").exists():
            _unpruned(trained, folder) if config is None else prune_checkpoint(
                trained / "checkpoint.pt", folder, config
            )
        rows.append(
            {"name": name, "seed": seed, "init": init} | _row(json.loads((folder / "results.json").read_text()))
        )
        _write(out, rows)
        plot(rows, out.with_suffix(".png"))


def _jobs() -> Iterator[tuple[str, int, str, PruneConfig | None]]:
    """(folder, seed, init, how); None: fine-tuned as it is."""
    for seed in SEEDS:
        for init in INITS:
            yield f"whole-{init}-{seed}", seed, init, None
            for way in ("filters", "channels", "channels by work"):
                yield f"ninety-{way}-{init}-{seed}", seed, init, PruneConfig(amount=0.9, epochs=TUNING, **WAYS[way])
    ways = [way for way in WAYS if way != "channels by work"]
    sweep = [(amount, criterion, way) for amount in AMOUNTS for criterion in CRITERIA for way in ways]
    sweep += [(amount, "explainfix", "channels by work") for amount in AMOUNTS]
    for amount, criterion, way in [*sweep, *((0.9, criterion, "channels") for criterion in MORE_CRITERIA)]:
        config = PruneConfig(amount=amount, criterion=criterion, epochs=SWEEP_TUNING, **WAYS[way])
        yield f"sweep-{amount}-{criterion}-{way}", 0, "dct2", config
    for amount in AMOUNTS:
        for criterion in WITHOUT_LABELS:
            config = PruneConfig(amount=amount, criterion=criterion, epochs=SWEEP_TUNING, **WAYS["filters"])
            yield f"sweep-{amount}-{criterion}-filters", 0, "dct2", config


def _unpruned(trained: Path, folder: Path) -> None:
    """The same fine-tuning without pruning."""
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    config = TrainConfig(**state["config"])
    images = load_dataset(config.data, config.seed)
    network, _ = make_network(config, images)
    load_weights(network, trained / "checkpoint.pt")
    trainer = Trainer(dataclasses.replace(config, epochs=TUNING), images, torch.device("cpu"), network=network)
    before = trainer.evaluate(images.test)
    folder.mkdir(parents=True)
    trainer.fit(folder, Observer())
    tested = {"unpruned": before, "pruned": None, "fine_tuned": trainer.evaluate(images.test)}
    (folder / "results.json").write_text(json.dumps({"test": tested, "prune": {"amount": 0.0}}))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy after fine-tuning against the amount; a line for each criterion and way of the sweep."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    whole = next(row for row in rows if row["name"] == "whole-dct2-0")["test"]["unpruned"]["accuracy"]
    for axes, measure in zip(figure.subplots(1, 2, sharey=True), ("amount", "multiply_adds"), strict=True):
        for colour, way in enumerate(WAYS):
            for criterion, style in STYLES.items():
                found = [r for r in rows if r["name"].startswith("sweep") and r["name"].endswith(f"{criterion}-{way}")]
                if not found:
                    continue
                found.sort(key=lambda r: r["amount"])
                x = [r["amount"] if measure == "amount" else r[measure][1] / r[measure][0] for r in found]
                y = [r["test"]["fine_tuned"]["accuracy"] for r in found]
                axes.plot(x, y, style, color=f"C{colour}", markersize=4, label=f"{criterion}, {way}")
        axes.axhline(whole, color="0.5", linewidth=1)
        axes.grid(alpha=0.3)
    figure.axes[0].set(xlabel="share of the filters pruned", ylabel="test accuracy", title="grey: unpruned")
    figure.axes[1].set(xlabel="multiply-adds, of the unpruned", title="the same networks by what they compute")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path)


def _row(results: dict[str, Any]) -> dict[str, Any]:
    row = {"test": results["test"], **results["prune"]}
    if "report" in results:
        report = results["report"]
        row |= {key: report[key] for key in ("verify_error", "pruned_filters", "parameters", "multiply_adds")}
    return row


def times(runs: Path, out: Path) -> None:
    """Steps of 64 images and inference of 64 and 1, each pruned network beside the whole one."""
    keep_memory()
    found = json.loads(out.read_text())
    x = {n: torch.randn(n, 1, 28, 28) for n in (64, 1)}
    for row in track(found["rows"], "time"):
        if row["amount"] == 0:
            continue
        results = json.loads((runs / row["name"] / "results.json").read_text())
        config = TrainConfig(**results["config"])
        images = load_dataset(config.data, config.seed)
        whole, _ = make_network(config, images)
        pruned, _ = make_network(config, images)
        efx.apply_plan(pruned, json.loads((runs / row["name"] / "plan.json").read_text()))
        load_weights(pruned, runs / row["name"] / "model.pt")
        calls = {}
        for side, model in (("whole", whole), ("pruned", pruned)):
            calls[f"step {side}"] = lambda model=model: step(model, x[64])
            for n in x:
                calls[f"inference of {n} {side}"] = lambda model=model, n=n: infer(model, x[n])
        timings = interleaved(calls, 15)
        kinds = ("step", "inference of 64", "inference of 1")
        row["time_over_whole"] = {k: timings[f"{k} pruned"].median / timings[f"{k} whole"].median for k in kinds}
        _write(out, found["rows"])


def step(model: nn.Module, x: Tensor) -> None:
    model.train()
    learned = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(model(x).square().mean(), learned)


@torch.no_grad()
def infer(model: nn.Module, x: Tensor) -> None:
    model.eval()(x)


def speed(out: Path, size: int = 128, batch: int = 4, rounds: int = 15) -> None:
    """ResNet-50 with random weights, images and labels: which channels go is random, how many of each layer is not."""
    from torchvision import models

    keep_memory()
    torch.manual_seed(0)
    x = torch.randn(batch, 3, size, size)
    data = [(torch.randn(4, 3, size, size), torch.randint(0, 1000, (4,))) for _ in range(2)]
    networks: dict[str, nn.Module] = {"learned": models.resnet50()}
    networks["fixed"] = models.resnet50()
    efx.convert(networks["fixed"], "dct2", seed=0)
    reports = {}
    seconds = {}
    for base in ("learned", "fixed"):
        scores = efx.saliency(networks[base], data)
        for way, options in WAYS.items():
            name, start = f"{base}, 90 %, {way}", time.perf_counter()
            report = efx.channelprune(networks[base], x, amount=0.9, criterion=scores, bn_bias="drop", **options)
            assert report.model is not None
            networks[name], reports[name], seconds[name] = report.model, report, time.perf_counter() - start
    steps, single = ({}, {})
    for (
        name,
        model,
    ) in networks.items():  # each beside the whole ones: many networks at once would crowd oneDNN's caches
        trio = {"learned": networks["learned"], "fixed": networks["fixed"], name: model}
        steps[name] = interleaved({n: lambda m=m: step(m, x) for n, m in trio.items()}, rounds)
        single[name] = interleaved({n: lambda m=m: infer(m, x[:1]) for n, m in trio.items()}, rounds)
    rows = []
    for name in networks:
        row: dict[str, Any] = {"name": name}
        for kind, timings in (("step", steps[name]), ("inference of 1", single[name])):
            over = {f"over {base}": ratio(timings, name, base)["median"] for base in ("fixed", "learned")}
            row[kind] = timings[name].as_dict() | over
        if name in reports:
            r = reports[name]
            row |= {"verify_error": r.verify_error, "parameters": r.parameters, "multiply_adds": r.multiply_adds}
            row["prune_seconds"] = seconds[name]
        rows.append(row)
        took, one = row["step"], row["inference of 1"]
        print(f"{name:34} step {1e3 * took['median']:7.1f} ms, {took['over fixed']:.2f} of fixed, "
              f"{took['over learned']:.2f} of learned; one image {1e3 * one['median']:6.1f} ms, "
              f"{one['over fixed']:.2f} of fixed")  # fmt: skip
    _write(out, rows, {"size": size, "batch": batch, "rounds": rounds})


def _write(out: Path, rows: list[dict[str, Any]], more: dict[str, Any] | None = None) -> None:
    about = {"hardware": hardware(torch.device("cpu")), "versions": versions(), **(more or {})}
    out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("accuracy", "times", "speed"))
    parser.add_argument("--data", default="../shared/data/pneumoniamnist.npz")
    parser.add_argument("--runs", type=Path, default=Path("runs/prune"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.what == "accuracy":
        accuracy(arguments.data, arguments.runs, arguments.out or RESULTS / "prune_accuracy.json")
    elif arguments.what == "times":
        times(arguments.runs, arguments.out or RESULTS / "prune_accuracy.json")
    else:
        speed(arguments.out or RESULTS / "prune_speed.json")


if __name__ == "__main__":
    main()
