"""Claims (b), (e), (f): how many filters are needed, of which frequencies they are, and what time that saves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from . import timing
from .jobs import CONTROL, CRITERIA, SWEPT, SWEPT_INITS, USUAL_RATE
from .scores import Score, in_order, pruned, score, select, trained
from .verdicts import Found, Section, Table, Verdict

# (b) ------------------------------------------------------------------------------------------------------------------

STAGES = {"pruned": "not tuned", "fine_tuned": "fine-tuned"}
NAMES = {"explainfix": "least salient", "random": "random", CONTROL: "most salient"}
MOST = 0.9  # of the filters, zeroed
HUNDREDTH = 0.99  # zeroed: the paper's "x100 fewer"


def few(found: Found) -> Section:
    rows = pruned(found)
    inits, amounts = in_order(rows, "init", SWEPT_INITS), in_order(rows, "amount")
    criteria = in_order(rows, "criterion", CRITERIA)
    lines = [(init, criterion, stage) for init in inits for criterion in criteria for stage in STAGES]
    head = ["zeroed", *(f"`{init}`, {NAMES[criterion]}, {STAGES[stage]}" for init, criterion, stage in lines)]
    table = [[f"{amount:.1%}", *(str(prune_score(rows, *line, amount)) for line in lines)] for amount in amounts]
    salient = {(i, stage, a): prune_score(rows, i, "explainfix", stage, a) for i, _, stage in lines for a in amounts}
    scratch = densities(found)

    def suffice(stage: str) -> list[bool]:
        whole = salient["dct2", stage, 0.0]
        return [salient["dct2", stage, amount].reaches(whole) for amount in amounts if amount >= MOST]

    most = "most network parameters are not necessary in spatially fixed models"
    asked = "with 90 % or more of its spatial filters zeroed by saliency, the fixed network reaches itself whole"
    hundredth = [
        salient["dct2", "fine_tuned", HUNDREDTH].reaches(salient["learned", "fine_tuned", 0.0]),
        scratch[0.01].reaches(salient["learned", "pruned", 0.0]),
    ]
    return Section(
        "b",
        "How few filters suffice",
        [
            Verdict(most, f"{asked}, neither tuned,", suffice("pruned")),
            Verdict(most, f"{asked}, both tuned alike,", suffice("fine_tuned")),
            Verdict(
                "up to x100 fewer spatial filter kernels than fully learned models and matching or improved accuracy",
                "with 1 % of its filters (the rest zeroed after training, then tuned; or zero from the start) the "
                "fixed network reaches the learned one whole",
                hundredth,
                possible=True,
            ),
        ],
        f"PneumoniaMNIST, {SWEPT} ResNet. First: filters of a trained network are set to zero, the least salient or "
        "random ones, then the network is tested, fine-tuned and tested again; 0 % is tuned, too. Second: all but a "
        "random share of the `dct2` filters is zero from the start, but for those of the stem, which are "
        "kept, as `density` does. Filters of a fixed network are not learned "
        "parameters: those that read and write what is zero go with `explainfix prune`, see (f).",
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


def prune_score(rows: Sequence[Mapping[str, Any]], init: str, criterion: str, stage: str, amount: float) -> Score:
    """Of single filters set to zero; none of them, if amount is 0, by no criterion."""
    criterion = criterion if amount else CRITERIA[0]
    return score(select(rows, init=init, criterion=criterion, amount=amount, structured=False), stage)


def densities(found: Found) -> dict[float, Score]:
    """Share of nonzero `dct2` filters -> score, all of them first."""
    rows = select(trained(found), data="pneumonia", model=SWEPT, lr=USUAL_RATE, width=1.0)
    shares = {row["label"]: float(row["label"].partition("@")[2] or 1) for row in rows if row["label"][:4] == "dct2"}
    ordered = sorted(shares, key=lambda label: -shares[label])
    return {shares[label]: score(select(rows, label=label)) for label in ordered}


# (e) ------------------------------------------------------------------------------------------------------------------

SHIPPED = ("ImageNet", "efficientnet_lite0")
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
    moved: list[bool] = []
    groups = spectra_of(found)
    for (data, network), jobs in groups.items():
        cells = [data, f"`{network}`", str(len(jobs[0]["spectra"]["trained"]))]
        for kind in KINDS:
            layers = [layer for job in jobs for layer in job["spectra"].get(kind, {}).values()]
            above = [layer["low"] > layer["flat"] for layer in layers]
            hits[kind] += above
            mean = statistics.mean(layer["low"] / layer["flat"] for layer in layers) if layers else 0
            cells += [f"{mean:.2f}", f"{sum(above)} of {len(layers)}"] if layers else ["", ""]
        for spectra in (job["spectra"] for job in jobs if "start" in job["spectra"]):
            moved += [layer["low"] > spectra["start"][name]["low"] for name, layer in spectra["trained"].items()]
        rows.append(cells)
    head = ["data", "network", "spatial layers"]
    head += [text for name in KINDS.values() for text in (f"{name}: low / flat", "layers above flat")]
    claim = "spatial convolution layers tend to prioritize low frequencies"
    shipped = " EfficientNet-Lite0 was trained on ImageNet by its authors." if SHIPPED in groups else ""
    return Section(
        "e",
        "Which frequencies layers use",
        [
            Verdict(claim, "training gave a layer more energy in low frequencies than it had at the start", moved),
            Verdict(claim, "a trained layer has more energy in low frequencies than a flat spectrum", hits["trained"]),
            Verdict(claim, "a trained layer has more of it than a flat spectrum, by saliency,", hits["salient"]),
        ],
        "Learned networks of (a). Energy in the DCT functions of a frequency below half of the highest, over what a "
        "flat spectrum has there (1: none preferred), mean over layers and seeds; with saliency, energy counts by the "
        f"size of the cost's gradient on training images.{shipped} Layers of all networks and seeds are counted, "
        "though those of one network are not independent.",
        [("Share of low frequencies over that of a flat spectrum", head, rows)],
        f"Before training, {sum(hits['start'])} of {len(hits['start'])} layers are above flat.",
    )


# (f) ------------------------------------------------------------------------------------------------------------------

SAVED = 0.17  # of a step's time: the paper's figure
PRUNED = {init: f"{init}, 90 % pruned" for init in ("learned", "dct2")}


def times(found: Found) -> Section:
    rows = []
    saved: dict[str, dict[str, float]] = {init: {} for init in PRUNED}
    for row in found["times"]:
        medians = {way: row["seconds"][way]["median"] for way in timing.WAYS}
        ratios = [f"{medians[way] / medians['learned']:.2f}" for way in timing.WAYS[1:]]
        left = [f"{row['parameters'][way]:,}" for way in ("learned", *PRUNED.values())]
        images = "x".join(map(str, row["images"]))
        rows.append([f"`{row['network']}`", images, f"{1e3 * medians['learned']:.0f} ms", *ratios, *left])
        for init, way in PRUNED.items():
            saved[init][row["network"]] = 1 - medians[way] / medians["learned"]
    head = ["network", "input", "`learned`", *(f"`{way}`" for way in timing.WAYS[1:])]
    head += [f"parameters, `{way}`" for way in ("learned", *PRUNED.values())]
    threads = found["times"][0]["threads"]
    listed = {i: ", ".join(f"`{n}` {value:.0%}" for n, value in saved[i].items()) for i in PRUNED}
    return Section(
        "f",
        "Time per step",
        [
            Verdict(
                "train up to 17% faster with channel pruning",
                "the pruned fixed network saves 17 % or more of the learned one's step",
                [value >= SAVED for value in saved["dct2"].values()],
                possible=True,
            )
        ],
        f"Forward and backward on the CPU, {threads} threads, random weights and images (which channels go is by "
        "chance, how many roughly not), interleaved, medians; not measured on a GPU. Pruned: 90 % of the "
        "filters, by channels and work, so that smaller layers are left.",
        [("A step's time over the learned network's, and learned parameters", head, rows), _what_is_left(found)],
        f"Time saved by the pruned fixed network: {listed['dct2']}; by the pruned learned one: {listed['learned']}.",
    )


def _what_is_left(found: Found) -> Table:
    """What networks pruned so reach: those of (b), trained."""
    rows = []
    for init in PRUNED:
        mine = select(pruned(found), init=init, structured=True)
        whole = prune_score(pruned(found), init, CRITERIA[0], "fine_tuned", 0.0)
        scores = [str(score(mine, stage)) for stage in STAGES]
        good = [row for row in mine if row["kind"] == "pruned"]
        shares = [statistics.mean(r[key][1] / r[key][0] for r in good) for key in ("parameters", "multiply_adds")]
        rows.append([f"`{init}`", str(whole), *scores, *(f"{share:.2f}" for share in shares)])
    head = ["90 % pruned, by channels and work", "whole, fine-tuned", *STAGES.values(), "parameters left"]
    return (f"PneumoniaMNIST, trained {SWEPT} ResNet: AUROC in points", [*head, "multiply-adds left"], rows)
