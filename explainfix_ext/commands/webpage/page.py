"""Arranges a report as a web page: sections with tables and pictures, or a note that says why there are none.

`commands/explain.py` calls `report_page`. This file makes the sections of words; `tables` and `pictures` the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from explainfix_ext._support import machine
from explainfix_ext._support.text import times
from explainfix_ext.filters.choose_init import init_names
from explainfix_ext.prune.costs import stored_numbers
from explainfix_ext.training import costs
from explainfix_ext.training.metrics import NAMES, shown

from .class_sections import channels_section, directions_section, groups_section
from .explained import Explained
from .findings import findings
from .html import GENERATOR, Html, element, items, join, note, page, table
from .pictures import filters_section, maps_section, spectra_section
from .prediction_section import predictions_section
from .tables import memory_section, pruning_section, summary_section


def report_page(found: Explained) -> Html:
    """Returns the report as the text of one HTML file.

    Examples:
        found = explain(ExplainConfig(model="bottleneck", size="1x28x28", classes=10), "a script")
        Path("report.html").write_text(report_page(found))
    """
    subject = found.subject
    where = "without data" if subject.images is None else f"on {subject.images.name}"
    lead = join([element("p", f"Explained {where}. Weights: {subject.weights}."), _cards(found)])
    sections: dict[str, tuple[str, Sequence[object]]] = {
        "network": ("The network", _network(found)),
        "findings": ("What was found", _findings(found)),
        "spectra": ("Of which frequencies the filters are made", [*spectra_section(found)]),
        "frequencies": ("Where in the image, and at which frequency", [*maps_section(found)]),
        "filters": ("Filters", filters_section(found)),
        **({} if subject.images is None else _about_classes(found)),
        "summary": ("What fixed layers store and compute", [*summary_section(found)]),
        "memory": ("Memory of a training step", [*memory_section(found)]),
        "pruning": ("Pruning", [*pruning_section(found)]),
        "origin": ("How this page was made", _origin(found)),
    }
    return page(f"{subject.name}, {subject.init}: ExplainFix report", lead, sections, GENERATOR)


def _about_classes(found: Explained) -> dict[str, tuple[str, Sequence[object]]]:
    return {
        "predictions": ("What it says of test images", [*predictions_section(found)]),
        "channels": ("Channels that follow one class", [*channels_section(found)]),
        "groups": ("Images that a layer treats alike", [*groups_section(found)]),
        "directions": ("What speaks for a class", [*directions_section(found)]),
    }


def _cards(found: Explained) -> Html:
    """Returns the few numbers in large type at the top of the page."""
    network, kinds = found.subject.network, _kinds(found)
    facts = [("learned parameters", _short(costs.learned_parameters(network)))]
    if found.test and found.metric and math.isfinite(found.test[found.metric]):
        facts.insert(0, (f"test {NAMES[found.metric]}", f"{found.test[found.metric]:.3f}"))
    if kinds:
        facts += [("spatial layers, fixed of all", f"{kinds.count('fixed') + kinds.count('mixed')} of {len(kinds)}")]
    if "recompute" in found.memory and found.memory["recompute"].frozen.peak:
        report = found.memory["recompute"]
        facts += [("peak memory with recompute, over plain torch's", f"{report.ours.peak / report.frozen.peak:.2f}")]
    for pruned in found.pruned_anew:
        if pruned.amount == 0.9 and pruned.report is not None:
            before, after = pruned.report.multiply_adds
            facts += [("multiply-adds left after pruning 90% of the filters", f"{after / max(before, 1):.0%}")]
    cards = (element("div", element("dt", name), element("dd", value)) for name, value in facts)
    return element("dl", *cards, class_="cards")


def _findings(found: Explained) -> list[Html]:
    said = findings(found)
    return [items(said) if said else note("Nothing: no part of the analysis could be made. The sections say why.")]


def _kinds(found: Explained) -> list[str]:
    """Returns how each spatial layer has its filters, in the words of `Spectra.filters`; empty without spectra."""
    return [*found.spectra["filters"].filters.values()] if "filters" in found.spectra else []


# The network --------------------------------------------------------------------------------------------------------


def _network(found: Explained) -> list[Html]:
    rows = [(name, value) for name, value in _facts(found).items() if value]
    caption = "The network, its data and its scores. Fixed filters are stored as coefficients, functions or by channel."
    parts = [_facts_table("facts", caption, rows)]
    if "test" in found.missing:
        parts.append(note(f"No test scores: {found.missing['test']}."))
    if found.subject.left:
        parts.append(element("p", "Spatial layers that were not fixed, and why:"))
        parts.append(items(f"{name}: {reason}" for name, reason in found.subject.left.items()))
    return parts


def _facts_table(name: str, caption: str, rows: Sequence[tuple[object, object]]) -> Html:
    return element("div", table(name, caption, ("what", "value"), rows, text=2), class_="facts")


def _facts(found: Explained) -> dict[str, str]:
    subject, images, kinds = found.subject, found.subject.images, _kinds(found)
    size = times(subject.shape)
    data = f"none; random images of {size}"
    if images is not None:
        counts = (f"{len(getattr(images, part)):,}" for part in ("train", "val", "test"))
        data = f"{images.name}: {images.task}, {images.classes} classes, images of {size} ({' / '.join(counts)} "
        data += "for training / validation / test)"
    return {
        "model": subject.name,
        "weights": subject.weights,
        "init": _what_init_is(subject.init),
        "data": data,
        "spatial layers": ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)),
        "parameters": f"{costs.learned_parameters(subject.network):,} learned, "
        f"{stored_numbers(subject.network):,} numbers stored",
        "training": _training(found),
        "test scores": ", ".join(
            f"{NAMES.get(name, name)} {shown(value)}" for name, value in (found.test or {}).items() if "/" not in name
        ),
    }


def _what_init_is(label: str) -> str:
    name = label.split("@")[0].split("+")[0]
    if name == "learned":
        return f"{label}: every layer learns its filters"
    return f"{label}: {init_names().get(name, 'fixed filters, as the weights have them')}"


def _training(found: Explained) -> str:
    config, epochs = found.subject.training, found.subject.epochs
    if config is None or epochs is None:
        return "none by explainfix: scores are those of the weights as they are"
    changed = [f"{name} {getattr(config, name)}" for name in ("pointwise", "learn_coeff") if getattr(config, name)]
    changed += [f"mixed precision {config.amp}"] if config.amp != "off" else []
    changed += [f"memory mode {config.memory}"] if config.memory != "off" else []
    changed += [f"loss {config.loss}"] if config.loss != "auto" else []
    changed += [f"images changed by {config.augment}"] if config.augment is not None else []
    changed += [f"{config.epoch_size:,} images an epoch"] if config.epoch_size is not None else []
    changed += [f"steering from {config.steering}"] if config.steering is not None else []
    first = f"{epochs} of {config.epochs} epochs, AdamW, highest learning rate {config.lr:g}, weight decay "
    first += f"{config.weight_decay:g}, batches of {config.batch_size} images"
    first += f" x {config.accumulate}" if config.accumulate > 1 else ""
    return ", ".join([first, f"seed {config.seed}", *changed])


# The end ------------------------------------------------------------------------------------------------------------


def _origin(found: Explained) -> list[Html]:
    hardware = machine.hardware(found.subject.device)
    computer = (
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads, {hardware['memory_gib']} GiB"
    )
    rows: list[tuple[object, object]] = [
        ("command", element("code", found.command)),
        ("date", f"{found.finished} (took {found.seconds:.0f} s)"),
        ("hardware", computer if hardware["gpu"] is None else f"{hardware['gpu']}; {computer}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions().items())),
    ]
    return [_facts_table("origin-facts", "Where the numbers come from; times in seconds, memory in GiB.", rows)]


def _short(n: int) -> str:
    return f"{n / 1e6:,.2f} M" if n >= 1e6 else f"{n:,}"
