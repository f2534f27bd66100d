"""Makes the sections with tables: fixed layers, memory, pruning. `page` calls it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from explainfix_ext._support.text import times
from explainfix_ext.memory.count import Usage
from explainfix_ext.prune import PruneReport
from explainfix_ext.prune.report import layers_by_reason
from explainfix_ext.training.metrics import NAMES, shown_with_error

from .explained import Explained, Pruned
from .frequencies import Frequencies
from .html import Html, bar, element, items, note, table

_MIB = 2**20
_MODES = {
    "torch": "torch: the same network with plain convolutions, where fixed filters are frozen weights",
    "off": "off: as it is",
    "exact, recompute": "exact, recompute: save_memory with the same gradients",
    "int8": "int8: what is kept is in 8 bits, gradients are off by up to 1 %",
}
_PRUNING_HEAD = (
    "filters pruned",
    "gone in all",
    "parameters left",
    "share",
    "multiply-adds left, M",
    "share",
    "verification error",
)


def summary_section(found: Explained) -> Iterator[Html]:
    """Makes a table of what each fixed layer stores and computes, beside a dense one."""
    if found.summary is None:
        yield note(f"It could not be counted: {found.missing.get('summary', 'the network does not run')}.")
        return
    layers = found.summary.layers
    if not layers:
        yield note(
            "The network has no fixed layer: all of its filters are stored and learned. (--init dct2 fixes them.)"
        )
        return
    head = ("layer", "filters", "init", "kernel", "nonzero", "stored, kB", "dense, kB", "multiply-adds, M", "dense, M")
    rows: list[Sequence[Any]] = []
    for layer in layers:
        shape = times(layer.shape)
        nonzero = "?" if layer.nonzero is None else f"{layer.nonzero:,}"
        numbers = (layer.stored_bytes, layer.dense_bytes, layer.multiply_adds or 0, layer.dense_multiply_adds or 0)
        rows.append((layer.name or "(model)", shape, layer.init, layer.kernel, nonzero, *_costs(*numbers)))
    names = ("stored_bytes", "dense_bytes", "multiply_adds", "dense_multiply_adds")
    sums = [sum(getattr(layer, name) or 0 for layer in layers) for name in names]
    rows.append((f"{len(layers)} fixed layers", "", "", "", "", *_costs(*sums)))
    yield table(
        "layers",
        f"What the fixed layers store (kB, 1,000 bytes) and compute for one image (millions of multiply-adds), each "
        f"beside a dense convolution; bars: share of the dense one. {found.summary.learned_parameters:,} parameters "
        f"of the network are learned.",
        head,
        rows,
        text=4,
        foot=1,
    )


def _costs(stored: int, dense: int, work: int, dense_work: int) -> tuple[object, ...]:
    return (
        bar(f"{stored / 1e3:,.1f}", stored / max(dense, 1)),
        f"{dense / 1e3:,.1f}",
        bar(f"{work / 1e6:,.2f}", work / max(dense_work, 1)),
        f"{dense_work / 1e6:,.2f}",
    )


def shares_table(found: Frequencies) -> Html:
    """Makes a table of the mean share of each band: of all images, of shuffled ones, and of each class."""
    sides = {f"{len(found.classes)} test images": found.shares, "the same, pixels shuffled": found.shuffled}
    rows = [(name, *(_percent(float(share.mean())) for share in shares.values())) for name, shares in sides.items()]
    if len(found.names) > 1:
        for name, means in zip(found.names, found.by_class(found.classes).T.tolist(), strict=True):
            rows.append((name, *map(_percent, means)))
    return table(
        "frequency-shares",
        "The share of each band of frequencies in the evidence about the true class, for and against it: the size of "
        "its sum over that of all bands, mean over images. Images with shuffled pixels have no structure: a floor.",
        ("images", *found.shares),
        rows,
    )


def _percent(share: float) -> Html:
    return bar(f"{share:.1%}", share)


def memory_section(found: Explained) -> Iterator[Html]:
    """Makes a table of the memory modes, and one of what each keeps by kind of layer."""
    if not found.memory:
        yield note(f"It could not be counted: {found.missing.get('memory', 'no step was run')}.")
        return
    step = f"One training step on {found.memory_images} images, bytes counted (MiB, 2^20 bytes)"
    plain = next(iter(found.memory.values()))  # its `frozen` is plain torch's, the same in every report
    usages = {"torch": plain.frozen} | {mode: report.ours for mode, report in found.memory.items()}
    yield table(
        "memory-modes",
        f"{step}: activations and gradients. {'; '.join(_MODES.values())}.",
        ("mode", "peak, MiB", "over torch's", "kept for backward, MiB", "over torch's"),
        [_usage_row(mode, usage, plain.frozen) for mode, usage in usages.items()],
    )
    kept = {"torch": plain.by(_kind)[1]} | {mode: report.by(_kind)[0] for mode, report in found.memory.items()}
    kinds = sorted({kind for sizes in kept.values() for kind in sizes}, key=lambda kind: (-kept["torch"][kind], kind))
    yield table(
        "memory-kinds",
        f"{step}: what is kept for the backward pass, by kind of layer.",
        ("kind", *kept),
        [(kind, *(f"{sizes[kind] / _MIB:,.2f}" for sizes in kept.values())) for kind in kinds],
    )


def _usage_row(mode: str, usage: Usage, plain: Usage) -> tuple[object, ...]:
    cells: list[object] = []
    for ours, theirs in ((usage.peak, plain.peak), (usage.kept_bytes, plain.kept_bytes)):
        share = ours / max(theirs, 1)
        cells += [f"{ours / _MIB:,.2f}", bar(f"{share:.2f}", share)]
    return (mode, *cells)


def _kind(name: str, kind: str) -> str:
    return kind


def pruning_section(found: Explained) -> Iterator[Html]:
    """Makes a table with one row per amount of pruning, and lists what failed and which channels must stay."""
    yield element("p", "Spatial filters are set to zero, the least important first; channels that are useless then go.")
    if "pruning" in found.missing:
        yield note(f"Nothing was pruned: {found.missing['pruning']}.")
        return
    scored = [found.metric] if found.metric and found.test else []
    first = next(pruned.report for pruned in found.pruned if pruned.report is not None)
    yield table(
        "pruned",
        _pruning_caption(found, scored),
        (*_PRUNING_HEAD, *(f"test {NAMES[name]}" for name in scored)),
        [_unpruned_row(found, first, scored), *(_pruned_row(found, pruned, scored) for pruned in found.pruned)],
    )
    failed = [f"{pruned.amount:.0%}: {pruned.reason}" for pruned in found.pruned if pruned.report is None]
    if failed:
        yield items(failed)
    yield from _protected(first.protected)


def _pruning_caption(found: Explained, scored: Sequence[str]) -> str:
    tests = f" The test {NAMES[scored[0]]} is without any fine-tuning." if scored else ""
    zeros = ""
    if round(found.zero_before, 3):
        zeros = f" {found.zero_before:.1%} were zero before: pruning up to that amount sets almost no others to zero."
    return (
        f"Planned by channelprune, filters scored by {found.criterion}. Gone in all are those that are zero or whose "
        f"channel went.{zeros} Multiply-adds in millions, for one image (a zero filter of an index bank takes none). "
        f"The verification error is the largest relative difference between the pruned network and the one whose "
        f"filters are only zero; there is none where no channel went.{tests}"
    )


def _unpruned_row(found: Explained, report: PruneReport, scored: Sequence[str]) -> tuple[Any, ...]:
    parameters, work = report.parameters[0], report.multiply_adds[0]
    cells = (f"{found.zero_before:.0%}", f"{parameters:,}", bar("1.00", 1), f"{work / 1e6:,.2f}", bar("1.00", 1), "")
    return ("0%", *cells, *(_score(found, found.test, name) for name in scored if found.test))


def _score(found: Explained, test: dict[str, float], name: str) -> str:
    return shown_with_error(name, test[name], 0 if found.subject.images is None else len(found.subject.images.test))


def _pruned_row(found: Explained, pruned: Pruned, scored: Sequence[str]) -> tuple[Any, ...]:
    report = pruned.report
    if report is None:
        return (f"{pruned.amount:.0%}", *["-"] * (len(_PRUNING_HEAD) - 1 + len(scored)))
    (before, after), (work, less) = report.parameters, report.multiply_adds
    gone = f"{report.pruned_filters:.0%}"
    error = "none" if report.verify_error is None else f"{report.verify_error:.1e}" if report.verify_error else "0"
    shares = [bar(f"{b / max(a, 1):.2f}", b / max(a, 1)) for a, b in ((before, after), (work, less))]
    scores = [_score(found, pruned.test, name) if pruned.test else "-" for name in scored]
    return (f"{pruned.amount:.0%}", gone, f"{after:,}", shares[0], f"{less / 1e6:,.2f}", shares[1], error, *scores)


def _protected(protected: dict[str, str]) -> Iterator[Html]:
    if protected:
        yield element("p", "Some channels must stay:")
        yield items(f"{reason}: {', '.join(names)}" for reason, names in layers_by_reason(protected).items())
