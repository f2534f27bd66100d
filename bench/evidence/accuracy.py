"""Claims (a), (c), (d): what fixed networks reach beside learned ones, at larger learning rates, at other widths."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from .jobs import FULL, NETWORKS, OURS, STEERED, SWEPT, SWEPT_INITS, UNSTEERED, USUAL, USUAL_RATE, WITH_1X1
from .scores import POINT, Score, in_order, score, select, trained
from .verdicts import Found, Section, Verdict

METRIC = {"pneumonia": "AUROC", "mnist5k": "accuracy", "nuclei": "Dice"}
LABELS = (*FULL.inits, "dct2+pointwise", "ghaar4_s1+pointwise", "auto+pointwise")

# (a) ------------------------------------------------------------------------------------------------------------------


def usual(found: Found, of: Mapping[str, Sequence[str]] = NETWORKS) -> Iterator[tuple[str, str, dict[str, Score]]]:
    """(data, network, label -> score) of networks as wide and trained as fast as usual."""
    rows = trained(found)
    for data, networks in of.items():
        rate = USUAL.get(data, {}).get("lr", USUAL_RATE)
        for network in networks:
            mine = select(rows, data=data, model=network, lr=rate, width=1.0)
            labels = [label for label in in_order(mine, "label", LABELS) if label in LABELS]
            yield data, network, {label: score(select(mine, label=label)) for label in labels}


def fixed(found: Found) -> Section:
    cells = list(usual(found))
    others = [cell for cell in usual(found, WITH_1X1) if cell[1] not in NETWORKS[cell[0]] and cell[2]]
    labels = [label for label in LABELS if any(label in scores for *_, scores in cells)]
    head = ["filters", *(f"{data}: {network}" for data, network, _ in cells + others)]
    rows = [
        [f"`{label}`", *(str(scores[label]) if label in scores else "" for *_, scores in cells + others)]
        for label in labels
    ]
    caption = "Test scores in points (" + ", ".join(f"{data}: {metric}" for data, metric in METRIC.items()) + ")"
    steered = [label for label in labels if label in STEERED]
    unsteered = [label for label in labels if label in UNSTEERED and "@" not in label]
    reached = {label: [s[label].reaches(s["learned"]) for *_, s in cells if label in s] for label in labels[1:]}
    counts = ", ".join(f"`{label}` {sum(hits)} of {len(hits)}" for label, hits in reached.items())
    return Section(
        "a",
        "Fixed beside learned filters",
        [
            Verdict(
                "all spatial filters in state-of-the-art convolutional deep networks can be fixed at initialization, "
                "not learned",
                "steered filters reach the learned ones",
                [hit for label in steered for hit in reached[label]],
            ),
            Verdict(
                "spatially fixed networks should have a steered initialization",
                "the mean of the steered inits is a point or more above that of the unsteered ones (not the sparse)",
                [_mean(s, steered) >= _mean(s, unsteered) + POINT for *_, s in cells],
            ),
        ],
        f"Every spatial filter of a network is fixed before training and the rest is learned, beside the same network "
        f"learned whole. Steered: {_listed(steered)}; not: {_listed(unsteered)} and, with a tenth of the filters, "
        f"`dct2@0.1` (as the authors group them; `kaiming_uniform` by us). `guided_steer` draws from a network that "
        f"learned the same task. {_listed(OURS)} are not the paper's: `auto`, the default of `convert`, is `hadamard`, "
        f"with `ghaar4_s1` or, in 7x7 stems, `ghaar9_s1` for fewer than 8 inputs a group; that rule was found on "
        f"`bottleneck` with these data. `dct2`'s rows are of recipe version 1, in which an RGB stem had no vertical "
        f"frequency. `unet_plain` has no learned 1x1 between its filters, `+pointwise` adds it (in no "
        f"group). One learning rate for all, not tuned; scores are the last epoch's. A network whose loss is no longer "
        f"finite counts as diverged. `dct2@0.1` leaves stems and depthwise layers whole, as `density` does.",
        [(caption, head, rows)],
        f"Networks in which each reaches the learned one: {counts}. Mean difference to it in points, over networks in "
        f"which no seed diverged: {', '.join(_gap(label, cells) for label in labels[1:])}.",
    )


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def _mean(scores: Mapping[str, Score], labels: Sequence[str]) -> float:
    return statistics.mean(scores[label].mean for label in labels if not scores[label].diverged)


def _gap(label: str, cells: Sequence[tuple[str, str, dict[str, Score]]]) -> str:
    gaps = [s[label].minus(s["learned"]) for *_, s in cells if label in s and not s[label].diverged]
    return f"`{label}` {statistics.mean(gaps):+.1f}" if gaps else f"`{label}` all diverged"


# (c), (d) -------------------------------------------------------------------------------------------------------------


def swept(found: Found, key: str) -> dict[float, dict[str, Score]]:
    """Learning rate or width -> init -> score."""
    other = {"lr": {"width": 1.0}, "width": {"lr": USUAL_RATE}}[key]
    rows = [r for r in select(trained(found), data="pneumonia", model=SWEPT, **other) if r["label"] in SWEPT_INITS]
    values = in_order(rows, key)
    return {v: {init: score(select(rows, label=init, **{key: v})) for init in SWEPT_INITS} for v in values}


def rates(found: Found) -> Section:
    table = swept(found, "lr")
    larger = [rate for rate in table if rate > USUAL_RATE]
    lost = {r: {init: _lost(table[USUAL_RATE][init], table[r][init]) for init in SWEPT_INITS} for r in larger}
    gained = [lost[rate]["learned"] - lost[rate][init] for rate in larger for init in SWEPT_INITS[1:]]
    said = "; ".join(f"at {rate:g} " + ", ".join(f"`{i}` {lost[rate][i]:.1f}" for i in SWEPT_INITS) for rate in larger)
    return Section(
        "c",
        "Larger learning rates",
        [
            Verdict(
                "improved robustness to larger learning rate",
                f"from {USUAL_RATE:g} to a larger rate, a fixed network loses at least a point less than the learned",
                [gain >= 1 for gain in gained],
            )
        ],
        f"PneumoniaMNIST, {SWEPT} ResNet, AdamW; everything else as before.",
        [
            (
                "AUROC in points",
                ["learning rate", *(f"`{init}`" for init in SWEPT_INITS)],
                [[f"{rate:g}", *(str(s[init]) for init in SWEPT_INITS)] for rate, s in table.items()],
            )
        ],
        f"Points lost from {USUAL_RATE:g} (inf: diverged): {said}. A fixed network loses at least a point more than "
        f"the learned one in {sum(gain <= -1 for gain in gained)} of {len(gained)}.",
    )


def _lost(usual: Score, larger: Score) -> float:
    return float("inf") if larger.diverged else (usual.mean - larger.mean) / POINT


def sizes(found: Found) -> Section:
    table = swept(found, "width")
    rows = select(trained(found), data="pneumonia", model=SWEPT, lr=USUAL_RATE)
    lines = []
    for width, scores in table.items():
        cells = [f"{width:g}"]
        for init, s in scores.items():
            sized = next((r for r in select(rows, width=width, label=init) if r["kind"] == "trained"), None)
            costs = (
                (f"{sized['learned_parameters']:,}", f"{sized['checkpoint_bytes'] / 1e3:,.0f}") if sized else ("", "")
            )
            cells += [str(s), *costs]
        lines.append(cells)
    head = ["width", *(f"`{init}`{what}" for init in SWEPT_INITS for what in ("", ", parameters", ", kB"))]
    gaps = {i: {width: s[i].minus(s["learned"]) for width, s in table.items()} for i in SWEPT_INITS[1:]}
    said = "; ".join(f"`{i}` " + ", ".join(f"{gap:+.1f}" for gap in row.values()) for i, row in gaps.items())
    return Section(
        "d",
        "Model size",
        [
            Verdict(
                "robustness to varying model size",
                "at another width, a fixed network is at most a point further behind the learned one than at the usual",
                [gap >= row[1.0] - 1 for row in gaps.values() for width, gap in row.items() if width != 1],
            )
        ],
        f"PneumoniaMNIST, {SWEPT} ResNet with WIDTH times as many channels (its stem has 64 at any width); learned "
        "parameters, checkpoint's size.",
        [("AUROC in points", head, lines)],
        f"Points over the learned network, by width: {said}.",
    )
