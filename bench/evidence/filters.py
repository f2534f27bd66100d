"""Claims (b), (e), (f): how many filters are needed, of which frequencies they are, and what time that saves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from . import timing
from .jobs import CRITERIA, SWEPT, SWEPT_INITS, USUAL_RATE
from .scores import Score, in_order, pruned, score, select, trained
from .verdicts import Found, Section, Verdict

# (b) ------------------------------------------------------------------------------------------------------------------

STAGES = {"pruned": "not tuned", "fine_tuned": "fine-tuned"}
HUNDREDTH = 0.99  # of the filters, zeroed: the paper's "x100 fewer"


def few(found: Found) -> Section:
    rows = pruned(found)
    inits, amounts = in_order(rows, "init", SWEPT_INITS), in_order(rows, "amount")
    lines = [(init, criterion, stage) for init in inits for criterion in CRITERIA for stage in STAGES]
    names = {"explainfix": "least salient", "random": "random"}
    head = ["zeroed", *(f"`{init}`, {names[criterion]}, {STAGES[stage]}" for init, criterion, stage in lines)]
    whole = {init: score(_once(select(rows, init=init)), "unpruned") for init in inits}
    table = [["none", *(str(whole[init]) for init, *_ in lines)]]
    table += [[f"{amount:.1%}", *(str(prune_score(rows, *line, amount)) for line in lines)] for amount in amounts]
    scratch = densities(found)
    sparse = prune_score(rows, "dct2", "explainfix", "fine_tuned", HUNDREDTH)
    return Section(
        "b",
        "Few filters suffice",
        [
            Verdict(
                "most network parameters are not necessary in spatially fixed models",
                "with the amounts below zeroed by saliency, the fixed network, fine-tuned, reaches itself whole",
                [prune_score(rows, "dct2", "explainfix", "fine_tuned", a).reaches(whole["dct2"]) for a in amounts],
            ),
            Verdict(
                "up to x100 fewer spatial filter kernels than fully learned models and matching or improved accuracy",
                "with 1 % of its filters, zeroed after training and fine-tuned, or from the start, the fixed network "
                "reaches the learned one whole",
                [sparse.reaches(whole["learned"]), scratch[0.01].reaches(whole["learned"])],
            ),
        ],
        f"PneumoniaMNIST, {SWEPT} ResNet. First: filters of a trained network are set to zero, the least salient or "
        "random ones, then the network is tested, fine-tuned and tested again. Second: all but a random share of the "
        "`dct2` filters is zero from the start.",
        [
            ("Zeroed after training: AUROC in points", head, table),
            (
                "Nonzero from the start: AUROC in points",
                ["nonzero filters", "`dct2`"],
                [[f"{density:.1%}", str(s)] for density, s in scratch.items()],
            ),
        ],
        "",
    )


def _once(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row a seed: all of a seed were pruned from the same network."""
    return list({row["job"]["seed"]: row for row in rows}.values())


def prune_score(rows: Sequence[Mapping[str, Any]], init: str, criterion: str, stage: str, amount: float) -> Score:
    return score(select(rows, init=init, criterion=criterion, amount=amount), stage)


def densities(found: Found) -> dict[float, Score]:
    """Share of nonzero `dct2` filters -> score, all of them first."""
    rows = select(trained(found), data="pneumonia", model=SWEPT, lr=USUAL_RATE, width=1.0)
    shares = {row["label"]: float(row["label"].partition("@")[2] or 1) for row in rows if row["label"][:4] == "dct2"}
    ordered = sorted(shares, key=lambda label: -shares[label])
    return {shares[label]: score(select(rows, label=label)) for label in ordered}


# (e) ------------------------------------------------------------------------------------------------------------------

KINDS = {"start": "at the start", "trained": "trained", "salient": "trained, with saliency"}


def spectra_of(found: Found) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(data, network) -> its spectra, one for each seed."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job in found["jobs"]:
        if job["kind"] == "spectra":
            groups.setdefault((job["data"], job["job"]["model"] if "job" in job else job["name"]), []).append(job)
    return groups


def frequencies(found: Found) -> Section:
    rows: list[list[str]] = []
    hits: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for (data, network), jobs in spectra_of(found).items():
        cells = [data, f"`{network}`", str(len(jobs[0]["spectra"]["trained"]))]
        for kind in KINDS:
            layers = [layer for job in jobs for layer in job["spectra"].get(kind, {}).values()]
            above = [layer["low"] > layer["flat"] for layer in layers]
            hits[kind] += above
            mean = statistics.mean(layer["low"] / layer["flat"] for layer in layers) if layers else 0
            cells += [f"{mean:.2f}", f"{sum(above)} of {len(layers)}"] if layers else ["", ""]
        rows.append(cells)
    head = ["data", "network", "spatial layers"]
    head += [text for name in KINDS.values() for text in (f"{name}: low / flat", "layers above flat")]
    claim = "spatial convolution layers tend to prioritize low frequencies"
    asked = "a layer (of all networks and seeds) has more energy in low frequencies than a flat spectrum,"
    return Section(
        "e",
        "Low frequencies dominate",
        [Verdict(claim, f"{asked} {KINDS[kind]},", hits[kind]) for kind in ("trained", "salient")],
        "Learned networks of (a). Energy in the DCT functions of a frequency below half of the highest, over what a "
        "flat spectrum has there (1: none preferred), mean over layers and seeds; with saliency, energy counts by the "
        "size of the cost's gradient on training images. EfficientNet-Lite0 was trained on ImageNet by its authors.",
        [("Share of low frequencies over that of a flat spectrum", head, rows)],
        f"Before training, {sum(hits['start'])} of {len(hits['start'])} layers are above flat.",
    )


# (f) ------------------------------------------------------------------------------------------------------------------

SAVED = 0.17  # of a step's time: the paper's figure


def times(found: Found) -> Section:
    rows, saved = [], {}
    for row in found["times"]:
        medians = {way: row["seconds"][way]["median"] for way in timing.WAYS}
        ratios = [f"{medians[way] / medians['learned']:.2f}" for way in timing.WAYS[1:]]
        images = "x".join(map(str, row["images"]))
        rows.append([f"`{row['network']}`", images, f"{1e3 * medians['learned']:.0f} ms", *ratios])
        saved[row["network"]] = 1 - medians["dct2, 90 % pruned"] / medians["learned"]
    head = ["network", "input", "`learned`", *(f"`{way}`" for way in timing.WAYS[1:])]
    threads = found["times"][0]["threads"]
    return Section(
        "f",
        "Time per step",
        [
            Verdict(
                "train up to 17% faster with channel pruning",
                "the pruned fixed network saves 17 % of the learned one's step",
                [value >= SAVED for value in saved.values()],
            )
        ],
        f"Forward and backward on the CPU, {threads} threads, random weights and images, interleaved, medians; not "
        "measured on a GPU. Pruned: 90 % of the filters, by channels and work, so that what is left is smaller.",
        [("A step's time over the learned network's", head, rows)],
        f"Time saved by the pruned fixed network: {', '.join(f'`{n}` {value:.0%}' for n, value in saved.items())}.",
    )
