"""Says in plain sentences what the numbers of a report mean. The terminal and the page show the same ones.

Each sentence is chosen by the numbers: one that does not hold for this network is not said.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from explainfix_ext.explain.spectra import Spectra
from explainfix_ext.training.metrics import NAMES

from .class_findings import about_classes
from .explained import Explained
from .frequencies import Frequencies

_POINT = 0.01  # a score (0 to 1) that falls by less is not called a loss
_MOVED = 0.01  # a centre (0 to 1) that moves by less has not moved
_USUAL = 0.9  # the default amount of `explainfix prune`
_BANDS = {"constant": "the constant", "low": "low frequencies", "high": "high frequencies"}
_NOISE = 1e-6  # a share that exceeds a flat spectrum's by less does so by rounding only


def findings(found: Explained) -> list[str]:
    """Returns sentences about spectra, training, frequencies in images, classes, memory and pruning, in this order.

    The first one may be: "In 5 of 5 spatial layers low frequencies (below half of the highest) have more of the energy
    than in a flat spectrum."
    """
    about_data = [] if found.frequencies is None else [*_about_frequencies(found.frequencies)]
    return [
        *_about_spectra(found),
        *_about_training(found),
        *about_data,
        *about_classes(found),
        *_about_memory(found),
        *_about_pruning(found),
    ]


def _about_spectra(found: Explained) -> Iterator[str]:
    filters, weighted = found.spectra.get("filters"), found.spectra.get("saliency")
    if filters is not None:
        yield (
            f"In {_low_layers(filters)} low frequencies (below half of the highest) have more of the energy than in a "
            f"flat spectrum."
        )
        shares = _known(filters.low)
        over = {name: share / filters.flat[name] for name, share in shares.items()}
        if len(over) > 1:
            least, most = min(over, key=over.__getitem__), max(over, key=over.__getitem__)
            yield (
                f"They weigh most in {_layer(most)} ({_share(filters, most)}) and least in {_layer(least)} "
                f"({_share(filters, least)})."
            )
    if filters is not None and weighted is not None:
        yield (
            f"With saliency, which weighs filters by how much the cost depends on them, they do in "
            f"{_low_layers(weighted)}. The mean centre of the layers' spectra is {_mean_centre(weighted):.2f} with it "
            f"and {_mean_centre(filters):.2f} without (0 is a constant, 0.5 a flat spectrum, 1 the highest frequency)."
        )


def _low_layers(spectra: Spectra) -> str:
    shares = _known(spectra.low)
    count = sum(share > spectra.flat[name] + _NOISE for name, share in shares.items())
    return f"{count} of {len(shares)} spatial layer{'s' * (len(shares) != 1)}"


def _share(spectra: Spectra, name: str) -> str:
    return f"{spectra.low[name]:.0%} of the energy; flat: {spectra.flat[name]:.0%}"


def _about_training(found: Explained) -> Iterator[str]:
    for kind, words in (("filters", ""), ("saliency", " with saliency")):
        now, start = found.spectra.get(kind), found.spectra.get(f"start {kind}")
        if now is None or start is None:
            continue
        if kind == "filters" and set(now.filters.values()) == {"fixed"}:
            yield "All spatial filters are fixed: training left their spectra as they were at the start."
            continue
        moves = _known({name: now.centre[name] - start.centre[name] for name in now.ed})
        if not moves:
            continue
        down, up = (sum(sign * move > _MOVED for move in moves.values()) for sign in (-1, 1))
        most = max(moves, key=lambda name: abs(moves[name]))
        layers = f"{len(moves)} layer{'s' * (len(moves) > 1)}{' that had energy before' * (len(moves) < len(now.ed))}"
        if not down + up:
            yield f"In training, the centre of the spectrum{words} moved in none of {layers}."
            continue
        yield (
            f"In training, the centre of the spectrum{words} moved to lower frequencies in {down} and to higher ones "
            f"in {up} of {layers}; most in {_layer(most)}, from {start.centre[most]:.2f} to {now.centre[most]:.2f}."
        )


def _about_frequencies(found: Frequencies) -> Iterator[str]:
    now, floor = ([f"{float(share.mean()):.1%}" for share in s.values()] for s in (found.shares, found.shuffled))
    words = [
        f"{_BANDS[band]}{' has' * (band == 'constant')} {share}" for band, share in zip(found.shares, now, strict=True)
    ]
    others = f"; in {found.without} others it adds nothing" if found.without else ""
    first = (
        f"In {_layer(found.layer)} {_joined(words)} of the evidence about the true class ({len(found.classes)} test "
        f"images{others}); on the same images with shuffled pixels, which have no structure, {_joined(floor)}"
    )
    sure = {band: gain for band in found.shares for gain, beyond in [found.gain(band)] if beyond}
    if sure:
        most = max(sure, key=lambda band: abs(sure[band]))
        verb, word = ("adds", "to") if sure[most] > 0 else ("takes", "from")
        yield f"{first}: the structure of images {verb} {100 * abs(sure[most]):.1f} points {word} {_BANDS[most]}."
    else:
        yield f"{first}: the structure of images changes none of them by two standard errors."
    if len(found.names) > 1:
        so = "differ" if found.difference > found.floor else "do not differ"
        yield (
            f"Between the classes these shares differ by up to {100 * found.difference:.1f} points, and in 95% of "
            f"random permutations of the classes by up to {100 * found.floor:.1f}: the classes {so} in frequency there."
        )


def _joined(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _about_memory(found: Explained) -> Iterator[str]:
    if not found.memory:
        return
    exact = {mode: report for mode, report in found.memory.items() if mode != "int8"}
    mode = min(exact, key=lambda name: exact[name].ours.peak)
    report = exact[mode]
    if not report.frozen.peak:
        return
    yield (
        f"Of the memory modes with the same gradients, {mode} has the smallest peak: "
        f"{report.ours.peak / report.frozen.peak:.2f} of plain torch's."
    )


def _about_pruning(found: Explained) -> Iterator[str]:
    if round(found.zero_before, 3):
        anew = {pruned.amount for pruned in found.pruned_anew}
        old = [f"{pruned.amount:.0%}" for pruned in found.pruned if pruned.amount not in anew]
        amounts = " or ".join([", ".join(old[:-1]), old[-1]] if len(old) > 1 else old)
        so = f", so pruning {amounts} of them changes next to nothing" if old else ""
        yield f"{found.zero_before:.1%} of the spatial filters are zero already, before any pruning{so}."
    done = [(pruned.amount, pruned.report) for pruned in found.pruned_anew if pruned.report is not None]
    left = [(amount, report) for amount, report in done if report.pruned_filters < 1]
    cut = [amount for amount, report in done if report.pruned_filters == 1]
    if left:
        amount, report = min(left, key=lambda pair: abs(pair[0] - _USUAL))
        parameters, work = (after / max(before, 1) for before, after in (report.parameters, report.multiply_adds))
        yield (
            f"Without {amount:.0%} of the spatial filters, {parameters:.0%} of the parameters and {work:.0%} of the "
            f"multiply-adds are left."
        )
    if cut:
        yield f"Without {cut[0]:.0%} of the spatial filters no way is left through the network: the others go, too."
    yield from _about_scores(found)


def _about_scores(found: Explained) -> Iterator[str]:
    """Says how much pruning a trained network stands, up to the first amount that has no score."""
    if found.metric is None or found.test is None or found.subject.epochs is None:
        return
    whole, what = found.test[found.metric], f"the test {NAMES[found.metric]}"
    scores = ((pruned.amount, (pruned.test or {}).get(found.metric, math.nan)) for pruned in found.pruned_anew)
    known = [*itertools.takewhile(lambda pair: math.isfinite(whole) and math.isfinite(pair[1]), scores)]
    good = [amount for amount, _ in itertools.takewhile(lambda pair: pair[1] >= whole - _POINT, known)]
    if not known:
        return
    if not good:
        yield (
            f"Without fine-tuning, pruning {known[0][0]:.0%} of the spatial filters already costs more than one point "
            f"of {what} ({whole:.3f})."
        )
    elif len(good) < len(known):
        yield (
            f"Up to {good[-1]:.0%} of the spatial filters can go before {what} ({whole:.3f}) falls by more than one "
            f"point, without any fine-tuning."
        )
    else:
        yield (
            f"Even without {good[-1]:.0%} of the spatial filters {what} ({whole:.3f} with all) has not fallen by more "
            f"than one point, without any fine-tuning."
        )


def _known(values: dict[str, float]) -> dict[str, float]:
    """Keeps the layers that have any energy; a share or centre of the others is NaN."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _mean_centre(spectra: Spectra) -> float:
    centres = _known(spectra.centre)
    return sum(centres.values()) / max(len(centres), 1)


def _layer(name: str) -> str:
    return name or "the model itself"
