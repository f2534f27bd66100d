"""The report's sections with pictures: spectra and filters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

from matplotlib import rc_context

from ..explain import Spectra
from ..explain_plots import plot_e0, plot_filters, plot_spectra
from ..html import Html, element, figure, note
from .explain_run import Explained


def spectra_section(found: Explained) -> Iterator[Html]:
    yield element(
        "p",
        "Every K x K filter is a sum of K x K cosine patterns (DCT-II functions), from a constant to a checkerboard. "
        "The energy of a layer over them tells what it can see: low frequencies are blurs and slow changes, high ones "
        "edges and texture.",
    )
    for kind, part in (("filters", "spectra"), ("saliency", "saliency")):
        if kind not in found.spectra:
            why = "a report with data also weighs filters by how much the cost depends on them"
            yield note(f"No spectra{' with saliency' * (kind == 'saliency')}: {found.missing.get(part, why)}.")
            continue
        now, start = found.spectra[kind], found.spectra.get(f"start {kind}")
        fixed = kind == "filters" and set(now.filters.values()) == {"fixed"}
        sides = (now, None) if start is None or fixed else (start, now)
        remark = (
            " Fixed filters do not change in training: one picture shows both." if fixed and start is not None else ""
        )
        yield from _spectra_figures(kind, sides, _weights_words(found, kind) + remark)


def _small_text() -> AbstractContextManager[None]:
    """Labels that are not larger than the names of the layers."""
    return rc_context({"font.size": 8})


def _weights_words(found: Explained, kind: str) -> str:
    if kind == "filters":
        return "Energy: mean |DCT coefficient| over the filters of the layer, without data."
    cost = "the true class's logit" if _is_multiclass(found) else "the sum of output x target"
    return (
        "Energy: mean over filters of |DCT coefficient| x |gradient of the cost|, the cost being "
        f"{cost}, on {found.scored:,} training images."
    )


def _is_multiclass(found: Explained) -> bool:
    return found.subject.images is not None and found.subject.images.task == "multiclass"


def _spectra_figures(kind: str, sides: tuple[Spectra, Spectra | None], words: str) -> Iterator[Html]:
    first, second = sides
    names, width = (("before training", "after training"), 5.0) if second is not None else (("", ""), 7.0)
    compared = " Left before, right after training." if second is not None else ""
    shown = f"{first.what}, {len(first.ed)} spatial layers.{compared}"
    with _small_text():
        picture = plot_spectra(first, second, names=names, width=width)
    picture.suptitle("")
    yield figure(
        f"ed-{kind}",
        picture,
        f"Heat map of layers by DCT functions: {shown}",
        f"e_d, the energy of each layer over the DCT-II functions of its kernel. Red: more than in a flat spectrum, "
        f"blue: less (ratio, no unit), grey: no energy. Behind each row: the layer's whole energy.{compared} {words}",
    )
    if not any(side.e0 for side in sides if side is not None):
        yield note("No e_0: no layer has a square kernel.")
        return
    with _small_text():
        picture = plot_e0(first, second, names=names, width=width)
    picture.suptitle("")
    yield figure(
        f"e0-{kind}",
        picture,
        f"Bars of the share of each frequency by layer: {shown}",
        f"e_0, the share of each frequency in % of the layer's sum, vertical and horizontal added (square kernels "
        f"only). Behind each bar: the sum; none: no energy.{compared}",
    )


def filters_section(found: Explained) -> list[Html]:
    if not found.filters:
        return [note("The network has no spatial convolution: there are no filters to draw.")]
    pictures = []
    for place, (name, conv) in enumerate(found.filters.items()):
        with _small_text():
            picture = plot_filters(conv, 36)
        title = picture.axes[0].get_title()
        picture.axes[0].set_title("")
        picture.set_size_inches(3.6, 3.6 * picture.get_figheight() / picture.get_figwidth())
        name = name or "(model)"
        pictures.append(figure(f"filters-{place}", picture, f"Filters of {name}.", f"{name}: {title}. Unit: weight."))
    words = "Filters of the first, the middle and the last spatial layer: red is positive, blue negative."
    return [element("p", words), element("div", *pictures, class_="row")]
