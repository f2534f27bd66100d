"""Makes the sections with pictures: spectra and filters. `page` calls it, and so needs matplotlib, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch.nn.functional as F
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor, nn

from explainfix_ext._support.text import first_line
from explainfix_ext.explain.plot_maps import plot_maps
from explainfix_ext.explain.plots import plot_e0, plot_filters, plot_spectra
from explainfix_ext.explain.spectra import Spectra

from .explained import Explained
from .frequencies import BATCH, DRAWN
from .html import Html, element, figure, note
from .tables import shares_table

_ABOUT_ED = (
    "e_d, the energy of each layer over the DCT-II functions of its kernel. Red: more than in a flat spectrum, blue: "
    "less (ratio, no unit), grey: no energy. Behind each row: the layer's whole energy."
)
_ABOUT_E0 = (
    "e_0, the share of each frequency in % of the layer's sum, vertical and horizontal added (square kernels only). "
    "Behind each bar: the sum; none: no energy."
)
_ZERO = {  # task -> what adds nothing to saliency's cost, the sum of output x target
    "binary": "images with target 0",
    "multilabel": "labels with target 0",
    "segmentation": "pixels with target 0",
}


def spectra_section(found: Explained) -> Iterator[Html]:
    """Makes pictures of the spectra, of the filters alone and with saliency, before and after training."""
    yield element(
        "p",
        "Every K x K filter is a sum of K x K cosine patterns (DCT-II functions), from a constant to a checkerboard. "
        "The energy of a layer over them tells what it can see: low frequencies are blurs and slow changes, high ones "
        "edges and texture.",
    )
    if "before training" in found.missing:
        yield note(f"Nothing about the network before training: {found.missing['before training']}.")
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
        yield from _spectra_figures(found, kind, sides, _weights_words(found, kind) + remark)


def _weights_words(found: Explained, kind: str) -> str:
    if kind == "filters":
        return "Energy: mean |DCT coefficient| over the filters of the layer, without data."
    images = found.subject.images
    nothing = None if images is None else _ZERO.get(images.task)
    cost = "the true class's logit" if nothing is None else "the sum of output x target"
    rest = "" if nothing is None else f", to which {nothing} add nothing"
    return (
        f"Energy: mean over filters of |DCT coefficient| x |gradient of the cost|, the cost being {cost}, on "
        f"{found.scored:,} training images{rest}."
    )


def _spectra_figures(found: Explained, kind: str, sides: tuple[Spectra, Spectra | None], words: str) -> Iterator[Html]:
    first, second = sides
    names, width = (("before training", "after training"), 5.0) if second is not None else (("", ""), 7.0)
    compared = " Left before, right after training." if second is not None else ""
    shown = f"{first.what}, {len(first.ed)} spatial layers.{compared}"
    yield draw_or_note(
        found,
        f"ed-{kind}",
        lambda: (plot_spectra(first, second, names=names, width=width), f"{_ABOUT_ED}{compared} {words}"),
        f"Heat map of layers by DCT functions: {shown}",
    )
    if not any(side.e0 for side in sides if side is not None):
        yield note("No e_0: no layer has a square kernel.")
        return
    yield draw_or_note(
        found,
        f"e0-{kind}",
        lambda: (plot_e0(first, second, names=names, width=width), _ABOUT_E0 + compared),
        f"Bars of the share of each frequency by layer: {shown}",
    )


def maps_section(found: Explained) -> Iterator[Html]:
    """Makes a picture of where each band of frequencies speaks for the true class, and a table of the bands' shares."""
    maps = found.frequencies
    if maps is None:
        yield note(f"No maps: {found.missing.get('frequencies', 'they need data')}.")
        return
    yield element(
        "p",
        "The output of a layer is a sum of parts, one for each cosine pattern in its filters: the constant, the low "
        "frequencies below half of the highest, the high ones from there on. So what speaks for the true class divides "
        f"exactly among these. Shown is {maps.layer or 'the model itself'}, the layer whose bands differ most in where "
        f"they look: on the first {min(BATCH, len(maps.classes))} images the place tells {maps.bits[maps.layer]:.3f} "
        "bits of the band.",
    )
    drawn = maps.drawn()
    labels = [maps.names[k] for k in maps.classes[drawn].tolist()]
    shown = {band: _averaged(found[drawn], maps.blur) for band, found in maps.maps.items()}
    caption = (
        f"Up to {DRAWN} test images of each class, and where the constant, the low and the high frequencies of "
        f"{maps.layer or 'the model'} speak for it (red) and against it (blue): x dc/dx, averaged over "
        f"{maps.blur} x {maps.blur} pixels, one scale for the maps of an image, no unit."
    )
    yield draw_or_note(
        found,
        "frequency-maps",
        lambda: (plot_maps(maps.images[drawn], shown, labels=labels, per_row=DRAWN, side=0.7), caption),
        f"Maps of {len(drawn)} images by bands of frequencies",
    )
    yield shares_table(maps)


def _averaged(maps: Tensor, size: int) -> Tensor:
    """Averages maps (N, H, W) over size x size pixels; at the border over those that there are."""
    return F.avg_pool2d(maps[:, None], size, 1, size // 2, count_include_pad=False)[:, 0]


def filters_section(found: Explained) -> list[Html]:
    """Makes a picture of the filters of each layer in `found.filters`."""
    if not found.filters:
        return [note("The network has no spatial convolution: there are no filters to draw.")]
    pictures = []
    for place, (name, conv) in enumerate(found.filters.items()):
        name = name or "(model)"
        pictures.append(draw_or_note(found, f"filters-{place}", partial(_filters, name, conv), f"Filters of {name}."))
    words = "Filters of the first, the middle and the last spatial layer: red is positive, blue negative."
    return [element("p", words), element("div", *pictures, class_="row")]


def _filters(name: str, conv: nn.Conv2d) -> tuple[Figure, str]:
    picture = plot_filters(conv, 36)
    title = picture.axes[0].get_title()
    picture.axes[0].set_title("")
    picture.set_size_inches(3.6, 3.6 * picture.get_figheight() / picture.get_figwidth())
    return picture, f"{name}: {title}. Unit: weight."


def draw_or_note(found: Explained, name: str, draw: Callable[[], tuple[Figure, str]], alt: str) -> Html:
    """Returns the figure and caption that `draw` makes; if it fails, a note, and the reason goes into `missing`."""
    try:
        with rc_context({"font.size": 8}):  # so that labels are not larger than the names of the layers
            picture, caption = draw()
        picture.suptitle("")
        return figure(name, picture, alt, caption)
    except Exception as error:  # matplotlib may raise anything
        found.missing[f"picture {name}"] = first_line(error)
        return note(f"No picture ({alt.rstrip('.')}): {first_line(error)}.")
