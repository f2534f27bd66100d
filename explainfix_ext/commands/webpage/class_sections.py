"""Makes the sections about classes: channels, groups of images, directions. `page` calls it if there are data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from explainfix_ext._support.pictures import new_figure
from explainfix_ext.explain.class_plots import plot_class_features, plot_class_purity
from explainfix_ext.explain.class_purity import ClassPurity
from explainfix_ext.training.data import Dataset

from .explained import Explained
from .html import Html, bar, element, note, table
from .pictures import draw_or_note


def class_name(images: Dataset | None, c: int) -> str:
    """Returns the name of a class in a sentence: its label, or its number."""
    return images.labels[c] if images is not None and images.labels else f"class {c}"


def _short_name(images: Dataset | None, c: int) -> str:
    return class_name(images, c).removeprefix("class ")


def channels_section(found: Explained) -> Iterator[Html]:
    """Makes a picture and a table of the purity of channels, and the accuracy with few inputs of the last layer."""
    yield element(
        "p",
        "The mean of a channel over an image says more or less about whether the image is of a class. Purity is the "
        "share of that uncertainty which it takes away, for the class that it tells best: 1 is a channel that follows "
        "one class alone.",
    )
    if found.purity is None:
        yield note(f"It could not be measured: {found.missing.get('class purity', 'unknown')}.")
        return
    purity = found.purity
    words = (
        f"Purity of each channel, by layer, on {purity.images:,} training images. Grey: up to the purest channel of "
        f"the layer when the labels are shuffled (20 times), which is what chance gives."
    )
    alt = f"Ticks for the purity of each channel of {len(purity.purity)} layers, with what chance gives."
    yield draw_or_note(found, "purity", lambda: (plot_class_purity(purity), words), alt)
    yield table(
        "purities",
        "Channels that follow a class: those that are purer than any of the layer is by chance. Of the purest one, "
        "purity and class. MIS: mean over channels of the most that one tells of a class, in nats, beside its mean "
        "with the labels shuffled.",
        ("layer", "channels", "follow a class", "purest", "of class", "by chance", "MIS", "by chance"),
        [_purity_row(found, purity, name) for name in purity.purity],
    )
    yield from _features(found)


def _purity_row(found: Explained, purity: ClassPurity, name: str) -> Sequence[Any]:
    values, follows = purity.purity[name], int(purity.follows[name].sum())
    best = int(values.argmax())
    of = _short_name(found.subject.images, int(purity.top[name][best]))
    numbers = (f"{values[best]:.3f}", of, f"{purity.chance[name]:.3f}")
    share = bar(f"{follows}", follows / len(values))
    return (name, len(values), share, *numbers, f"{purity.mis[name]:.4f}", f"{purity.mis_chance[name]:.4f}")


def _features(found: Explained) -> Iterator[Html]:
    features = found.features
    if features is None:
        yield note(f"No inputs of the last layer: {found.missing.get('class features', 'unknown')}.")
        return
    words = (
        f"Test accuracy ({features.images:,} images) if each class keeps only those inputs of the last layer that "
        f"contribute most to it, chosen by training images; grey: as many random inputs, the mean of 20 draws."
    )
    alt = "Accuracy over the number of inputs kept for each class, beside that of random inputs."
    yield draw_or_note(found, "class-features", lambda: (plot_class_features(features), words), alt)


def groups_section(found: Explained) -> Iterator[Html]:
    """Makes pictures of the largest groups of images."""
    yield element(
        "p",
        "Images are grouped by the means of a layer's channels, without looking at their labels: what is in a "
        "group, the layer treats alike. Images that resemble no others are in no group.",
    )
    groups = found.groups
    if groups is None:
        yield note(f"There are none: {found.missing.get('groups', 'unknown')}.")
        return
    if not groups.pictures:
        yield note(f"In {groups.found.layer} there is no group among {len(groups.found.group):,} images.")
        return
    shown, count = len(groups.pictures), len(groups.found.sizes)
    which = f"The {shown} largest of {count} groups" if shown < count else f"The {count} group{'s' * (count > 1)}"
    words = (
        f"{which} in {groups.found.layer}, of {len(groups.found.group):,} training images. Left the mean of a group's "
        f"images, then those that are most typical of it; black is the darkest pixel shown, white the brightest."
    )
    alt = f"Rows of images, one for each of {shown} groups: the mean, then typical images."
    yield draw_or_note(found, "groups-images", lambda: (_plot_groups(found), words), alt)


def _plot_groups(found: Explained) -> Figure:
    """Draws a row of images for each group."""
    groups, images = found.groups, found.subject.images
    assert groups is not None
    assert images is not None
    rows, columns = _visible(groups.pictures, images), max(map(len, groups.pictures))
    figure = new_figure(0.72 * columns + 0.9, 0.74 * len(groups.pictures) + 0.25, dpi=150)
    grid = figure.subplots(len(groups.pictures), columns, squeeze=False)
    for i, (row, pictures) in enumerate(zip(grid, rows, strict=True)):
        for axes in row:
            axes.set_axis_off()
        for axes, picture in zip(row, pictures, strict=False):
            axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
        text = f"{groups.found.sizes[i]:,} images"
        if groups.common:
            c, share = groups.common[i]
            text += f"\n{share:.0%} {class_name(images, c)}"
        row[0].text(-0.1, 0.5, text, fontsize=7, ha="right", va="center", transform=row[0].transAxes)
    grid[0][0].set_title("mean", fontsize=7)
    if columns > 1:
        grid[0][1].set_title("typical", fontsize=7)
    return figure


def _visible(pictures: list[Tensor], images: Dataset) -> list[Tensor]:
    """Returns images (n, H, W) grey or (n, H, W, 3) in colour, all of them together stretched from 0 to 1.

    Unless there are three channels, the first is shown.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    channels = slice(None) if len(mean) == 3 else slice(1)
    rows = [(x * std + mean)[:, channels] for x in pictures]
    low, high = min(float(x.min()) for x in rows), max(float(x.max()) for x in rows)
    rows = [(x - low) / max(high - low, 1e-6) for x in rows]
    return [x.movedim(1, 3) if x.shape[1] == 3 else x[:, 0] for x in rows]


def directions_section(found: Explained) -> Iterator[Html]:
    """Makes a table of what the network recognises without each class's most relevant direction."""
    yield element(
        "p",
        "At every position a layer's channels are a point, and what speaks for a class lies along some directions more "
        "than along others. Here the one that carries most for a class (PRCA: gradient x activation, on training "
        "images) is held at its mean, and the network is tested.",
    )
    directions = found.directions
    if directions is None:
        yield note(f"They could not be found: {found.missing.get('class directions', 'unknown')}.")
        return
    rows = []
    for c, (before, after) in directions.own.items():
        others, without = directions.others[c]
        cells = (bar(f"{share:.1%}", share) for share in (before, after, directions.random[c], others, without))
        rows.append((_short_name(found.subject.images, c), *cells))
    yield table(
        "class-directions",
        f"Share of {directions.images:,} test images that are recognised with all {directions.channels} directions in "
        f"{directions.layer}, and without one: the class's most relevant one, or a random one (mean of 5 draws).",
        (
            "class",
            "its images",
            "without its direction",
            "without a random one",
            "the others'",
            "without this class's direction",
        ),
        rows,
    )
