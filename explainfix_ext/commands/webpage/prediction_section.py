"""Makes the section about what a network says of test images: pictures of some, and how often which class is right.

`page` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from explainfix_ext.explain.plot_predictions import plot_masks, plot_predictions
from explainfix_ext.training.metrics import shown

from .explained import Explained
from .html import Html, element, note, table
from .pictures import draw_or_note

_TABLE_CLASSES = 20  # a confusion matrix of more is too wide for the page


def predictions_section(found: Explained) -> Iterator[Html]:
    """Makes pictures of predictions, and a table of how often which classes are right."""
    said, images = found.predictions, found.subject.images
    if said is None or images is None:
        yield note(f"It could not be run: {found.missing.get('predictions', 'unknown')}.")
        return
    count = len(said.images)
    if images.task == "segmentation":
        words = (
            f"{count} random test images, the network's probability of foreground (white: 1), and where a probability "
            f"above 0.5 agrees with the true mask."
        )
        alt = f"{count} images with predicted masks, compared with the true ones."
        yield draw_or_note(found, "said", lambda: (plot_masks(said.images, said.shares, said.targets), words), alt)
        return
    words = (
        f"{count} random test images, and the network's probability of each class"
        f"{' (the likeliest ones)' if len(said.labels) > 10 else ''}: dark where that is true, hatched where it is not "
        f"known."
    )
    alt = f"{count} images with bars for the probabilities of {len(said.labels)} classes."

    def draw() -> Any:
        return plot_predictions(said.images, said.shares, said.targets, said.labels), words

    yield draw_or_note(found, "said", draw, alt)
    if images.task == "multilabel":
        yield _labels_table(found)
    elif "all" in found.confusion and images.classes <= _TABLE_CLASSES:
        yield _confusion_table(found)


def _confusion_table(found: Explained) -> Html:
    matrix = found.confusion["all"]
    names = [str(k) for k in range(len(matrix))]
    rows: list[Sequence[object]] = [
        (name, *(element("strong", n) if k == row else n for k, n in enumerate(counts)))
        for row, (name, counts) in enumerate(zip(names, matrix, strict=True))
    ]
    caption = "Test images of each class (rows) by the class that the network says (columns)."
    return table("confusion", caption, ("true class", *names), rows)


def _labels_table(found: Explained) -> Html:
    scores, rows = found.test or {}, []
    for name, ((true_negative, false_positive), (false_negative, true_positive)) in found.confusion.items():
        each = [
            shown(scores[f"{metric}/{name}"]) if f"{metric}/{name}" in scores else "-" for metric in ("auroc", "mcc")
        ]
        rows.append((name, *each, true_positive, false_positive, false_negative, true_negative))
    caption = (
        "Test images by label. MCC and counts are at a probability of 0.5: right and wrong where the network says that "
        "the image has the label, then wrong and right where it says that it has not."
    )
    head = ("label", "AUROC", "MCC", "true +", "false +", "false -", "true -")
    return table("confusion", caption, head, rows)
