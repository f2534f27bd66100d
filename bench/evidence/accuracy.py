"""Claims (a), (c), (d): what fixed networks reach beside learned ones, at larger learning rates, at other widths."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from .jobs import FULL, NETWORKS, SWEPT, SWEPT_INITS, UNSTEERED, USUAL, USUAL_RATE
from .scores import POINT, Score, in_order, score, select, trained
from .verdicts import Found, Section, Verdict

METRIC = {"pneumonia": "AUROC", "mnist5k": "accuracy", "nuclei": "Dice"}
LABELS = (*FULL.inits, "dct2+pointwise", "ghaar4_s1+pointwise")

# (a) ------------------------------------------------------------------------------------------------------------------


def usual(found: Found) -> Iterator[tuple[str, str, dict[str, Score]]]:
    """(data, network, label -> score) of the networks as wide and trained as fast as usual."""
    rows = trained(found)
    for data, networks in NETWORKS.items():
        rate = USUAL.get(data, {}).get("lr", USUAL_RATE)
        for network in networks:
            mine = select(rows, data=data, model=network, lr=rate, width=1.0)
            labels = [label for label in in_order(mine, "label", LABELS) if label in LABELS]
            yield data, network, {label: score(select(mine, label=label)) for label in labels}


def fixed(found: Found) -> Section:
    cells = list(usual(found))
    labels = [label for label in LABELS if any(label in scores for *_, scores in cells)]
    head = ["filters", *(f"{data}: {network}" for data, network, _ in cells)]
    rows = [
        [f"`{label}`", *(str(scores[label]) if label in scores else "" for *_, scores in cells)] for label in labels
    ]
    caption = "Test scores in points (" + ", ".join(f"{data}: {metric}" for data, metric in METRIC.items()) + ")"
    steered = [label for label in labels[1:] if label not in UNSTEERED and "pointwise" not in label]
    unsteered = [label for label in labels if label in UNSTEERED]
    reached = {label: [s[label].reaches(s["learned"]) for *_, s in cells if label in s] for label in labels[1:]}
    counts = ", ".join(f"`{label}` {sum(hits)} of {len(hits)}" for label, hits in reached.items())
    gaps = {label: [s[label].minus(s["learned"]) for *_, s in cells if label in s] for label in labels[1:]}
    means = ", ".join(f"`{label}` {statistics.mean(gap):+.1f}" for label, gap in gaps.items())
    return Section(
        "a",
        "Fixed filters do as well as learned ones",
        [
            Verdict(
                "all spatial filters in state-of-the-art convolutional deep networks can be fixed at initialization, "
                "not learned",
                "the best steered filters reach the learned network",
                [_best(s, steered).reaches(s["learned"]) for *_, s in cells],
            ),
            Verdict(
                "spatially fixed networks should have a steered initialization",
                "the best steered filters are better than the best unsteered ones",
                [_best(s, steered).mean > _best(s, unsteered).mean for *_, s in cells],
            ),
        ],
        "Every spatial filter of a network is fixed before training and the rest is learned, beside the same network "
        "learned whole; `ones` and `kaiming_uniform` are not steered. `guided_steer` draws from a network that learned "
        "the same task. `unet_plain` has no learned 1x1 between its filters, `+pointwise` gives it some (not counted "
        "among the steered).",
        [(caption, head, rows)],
        f"Networks in which each reaches the learned one: {counts}. Mean difference to it in points: {means}.",
    )


def _best(scores: Mapping[str, Score], labels: Sequence[str]) -> Score:
    """Of those that did not diverge."""
    return max((scores[label] for label in labels if not scores[label].diverged), key=lambda s: s.mean)


# (c), (d) -------------------------------------------------------------------------------------------------------------


def swept(found: Found, key: str) -> dict[float, dict[str, Score]]:
    """Learning rate or width -> init -> score."""
    other = {"lr": {"width": 1.0}, "width": {"lr": USUAL_RATE}}[key]
    rows = [r for r in select(trained(found), data="pneumonia", model=SWEPT, **other) if r["label"] in SWEPT_INITS]
    values = in_order(rows, key)
    return {v: {init: score(select(rows, label=init, **{key: v})) for init in SWEPT_INITS} for v in values}


def rates(found: Found) -> Section:
    table = swept(found, "lr")
    best = {init: max(s[init].mean for s in table.values() if not s[init].diverged) for init in SWEPT_INITS}
    lost = {rate: {init: _lost(best[init], s[init]) for init in SWEPT_INITS} for rate, s in table.items()}
    larger = [rate for rate in table if rate > USUAL_RATE]
    hits = [lost[rate][init] < lost[rate]["learned"] for rate in larger for init in SWEPT_INITS[1:]]
    said = "; ".join(f"{rate:g}: " + ", ".join(f"`{i}` {lost[rate][i]:.1f}" for i in SWEPT_INITS) for rate in larger)
    return Section(
        "c",
        "Larger learning rates",
        [
            Verdict(
                "improved robustness to larger learning rate",
                f"at rates above {USUAL_RATE:g} a fixed network loses less, from its best rate, than the learned one",
                hits,
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
        f"Points lost from the best rate (inf: diverged), at {said}.",
    )


def _lost(best: float, found: Score) -> float:
    return float("inf") if found.diverged else (best - found.mean) / POINT


def sizes(found: Found) -> Section:
    table = swept(found, "width")
    rows = select(trained(found), data="pneumonia", model=SWEPT, lr=USUAL_RATE)
    lines = []
    for width, scores in table.items():
        cells = [f"{width:g}"]
        for init, s in scores.items():
            sized = select(rows, width=width, label=init)[0]
            cells += [str(s), f"{sized['learned_parameters']:,}", f"{sized['checkpoint_bytes'] / 1e3:,.0f}"]
        lines.append(cells)
    head = ["width", *(f"`{init}`{what}" for init in SWEPT_INITS for what in ("", ", parameters", ", kB"))]
    gaps = {i: ", ".join(f"{s[i].minus(s['learned']):+.1f}" for s in table.values()) for i in SWEPT_INITS[1:]}
    return Section(
        "d",
        "Models of any size",
        [
            Verdict(
                "robustness to varying model size",
                "a fixed network reaches the learned one of its width",
                [s[init].reaches(s["learned"]) for s in table.values() for init in SWEPT_INITS[1:]],
            )
        ],
        f"PneumoniaMNIST, {SWEPT} ResNet with WIDTH times as many channels; learned parameters, checkpoint's size.",
        [("AUROC in points", head, lines)],
        f"Points over the learned network, by width: {'; '.join(f'`{init}` {gap}' for init, gap in gaps.items())}.",
    )
