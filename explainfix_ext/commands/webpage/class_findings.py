"""Says in plain sentences what the numbers about classes mean. `findings` calls it."""

from __future__ import annotations

from collections.abc import Iterator

from .class_sections import class_name
from .explained import Explained

_POINT = 0.01  # an accuracy (0 to 1) that is lower by less is as good


def about_classes(found: Explained) -> Iterator[str]:
    """Yields sentences about channels, inputs of the last layer, groups of images, and directions."""
    yield from _about_channels(found)
    yield from _about_inputs(found)
    yield from _about_groups(found)
    yield from _about_directions(found)


def _about_channels(found: Explained) -> Iterator[str]:
    purity = found.purity
    if purity is None:
        return
    layer = max(purity.mis, key=lambda name: purity.mis[name] - purity.mis_chance[name])
    follows, values = int(purity.follows[layer].sum()), purity.purity[layer]
    if not any(bool(some.any()) for some in purity.follows.values()):
        yield "In no layer a channel tells one class from the others better than by chance, with the labels shuffled."
        return
    best = int(values.argmax())
    what = class_name(found.subject.images, int(purity.top[layer][best]))
    yield (
        f"Channels follow single classes most in {layer}: {follows} of {len(values)} tell one class from the others "
        f"better than any does with the labels shuffled (purity {purity.chance[layer]:.2f}). The purest takes away "
        f"{values[best]:.0%} of the uncertainty whether an image is of {what}."
    )


def _about_inputs(found: Explained) -> Iterator[str]:
    features = found.features
    if features is None:
        return
    *fewer, inputs = features.accuracy
    whole = features.accuracy[inputs]
    enough = next((n for n in fewer if features.accuracy[n] >= whole - _POINT), None)
    if enough is not None:
        yield (
            f"{enough} of the last layer's {inputs} inputs are enough for each class: with these alone the test "
            f"accuracy is {features.accuracy[enough]:.3f}, and {whole:.3f} with all; with {enough} random ones it is "
            f"{features.chance[enough]:.3f}."
        )
    elif fewer:
        yield (
            f"The last layer needs more than {fewer[-1]} of its {inputs} inputs for each class: with the {fewer[-1]} "
            f"that contribute most the test accuracy is {features.accuracy[fewer[-1]]:.3f}, and {whole:.3f} with all."
        )


def _about_groups(found: Explained) -> Iterator[str]:
    groups = found.groups
    if groups is None:
        return
    layer, count, images = groups.found.layer, len(groups.found.sizes), len(groups.found.group)
    if not count:
        yield f"In {layer} no group stands out among {images:,} training images."
        return
    said = (
        f"{layer} treats {groups.found.grouped:.0%} of {images:,} training images alike in {count} "
        f"group{'s' * (count > 1)} ({groups.found.chance:.0%} when its channels are shuffled among the images)"
    )
    if groups.alike is None or groups.alike_chance is None:
        yield f"{said}."
        return
    yield (
        f"{said}; of the images in groups {groups.alike:.1%} are of their group's most common class "
        f"({groups.alike_chance:.1%} with the labels shuffled), though labels were not used."
    )


def _about_directions(found: Explained) -> Iterator[str]:
    directions = found.directions
    if directions is None:
        return
    before, after, others, without, random = directions.means()
    classes = len(directions.own)
    yield (
        f"With the direction of {directions.layer} that carries most for a class, one of {directions.channels}, held "
        f"at its mean, {after:.0%} of the class's test images are recognised instead of {before:.0%}, and "
        f"{without:.0%} of the others' instead of {others:.0%}; with a random direction held, {random:.0%} of the "
        f"class's (means over {classes} class{'es' * (classes > 1)})."
    )
