"""Computes what a report says of classes: groups of images with their pictures, and the directions of each class.

`run` calls it; the analyses themselves are `patterns` and `prca`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from explainfix_ext._support.models import eval_mode
from explainfix_ext.explain.features import chosen_layers, class_logits, layer_features, one_class_each
from explainfix_ext.explain.patterns import Patterns, patterns
from explainfix_ext.explain.prca import ClassSubspaces, prca, without_directions

Batches = Iterable[tuple[Tensor, Tensor]]

_SHOWN, _TYPICAL = 6, 8  # groups whose images are drawn, and images of each
_PIXELS = 64  # the largest height and width of an image that is drawn
_SHUFFLES = 20  # of the labels
_DRAWS = 5  # of random directions
_CLASSES = 10  # whose directions are taken out, the first ones


@dataclass(frozen=True)
class Groups:
    """Holds groups of images that a layer treats alike.

    Attributes:
        found: what `patterns` found.
        pictures: for each of the largest groups its mean image and then its most typical ones, (images, C, H, W), as
            the network gets them.
        common: for each group its most common class, and the share of its images that are of it; empty where images
            have not one class each.
        alike: share of all images in groups that are of their group's most common class; None without groups, or
            where images have not one class each.
        alike_chance: the same with the labels shuffled, the mean of 20 times.
    """

    found: Patterns
    pictures: list[Tensor]
    common: list[tuple[int, float]]
    alike: float | None
    alike_chance: float | None

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers for JSON."""
        found = {"layer": self.found.layer, "images": len(self.found.group), "sizes": self.found.sizes}
        shares = {"grouped": self.found.grouped, "chance": self.found.chance}
        return found | shares | {"alike": self.alike, "alike_chance": self.alike_chance}


@dataclass(frozen=True)
class Directions:
    """Holds how well a network recognises test images without the most relevant direction of each class in a layer.

    Attributes:
        layer: its name.
        channels: number of its channels, and so of directions.
        images: number of test images.
        own: class -> share of its images that are recognised with all directions, and without its own one.
        others: class -> the same of the images of all other classes.
        random: class -> share of its images that are recognised without a random direction, the mean of 5 draws.
    """

    layer: str
    channels: int
    images: int
    own: dict[int, tuple[float, float]]
    others: dict[int, tuple[float, float]]
    random: dict[int, float]

    def means(self) -> tuple[float, float, float, float, float]:
        """Returns the means over classes of `own` (2), `others` (2) and `random`."""
        pairs = [*zip(*self.own.values(), strict=True), *zip(*self.others.values(), strict=True)]
        a, b, c, d, e = (sum(values) / len(values) for values in (*pairs, [*self.random.values()]))
        return a, b, c, d, e


def find_groups(network: nn.Module, image: Tensor, batches: Callable[[str], Batches]) -> Groups:
    """Groups images by the last of the layers with the most channels.

    Args:
        network: the network.
        image: one image (1, C, H, W), to count channels.
        batches: returns the same images at each call, for work of this name.
    """
    found = patterns(network, batches("groups of images"), _widest(network, image))
    return Groups(found, _pictures(found, batches("pictures of groups")), *_compared(found))


def _widest(network: nn.Module, image: Tensor) -> str:
    layers = _layers(network, image)
    return max(reversed(layers), key=layers.__getitem__)


def _layers(network: nn.Module, image: Tensor) -> dict[str, int]:
    """Returns the layers that are looked at, and that run: name -> number of channels."""
    features, _ = layer_features(network, [(image, torch.zeros(1))], chosen_layers(network, None), None, skip=True)
    return {name: mean.shape[1] for name, mean in features.items()}


def _pictures(found: Patterns, batches: Batches) -> list[Tensor]:
    """Returns the mean image and the typical ones of each of the largest groups, in a pass over the images."""
    groups = range(min(_SHOWN, len(found.sizes)))
    wanted = [found.typical(group, _TYPICAL) for group in groups]
    means: list[Any] = [0.0 for _ in groups]
    images: dict[int, Tensor] = {}
    start = 0
    for x, _ in batches:
        small = _small(x.cpu())
        here = found.group[start : start + len(x)]
        for group in groups:
            means[group] = means[group] + small[here == group].sum(0) / found.sizes[group]
            chosen = wanted[group] - start
            images |= {start + i: small[i].clone() for i in chosen[(chosen >= 0) & (chosen < len(x))].tolist()}
        start += len(x)
    return [torch.stack([means[group], *(images[i] for i in wanted[group].tolist())]) for group in groups]


def _small(x: Tensor) -> Tensor:
    """Returns images (N, C, H, W) of at most 64 pixels a side, averaged over what a pixel covers."""
    height, width = (min(_PIXELS, n) for n in x.shape[2:])
    return nn.functional.adaptive_avg_pool2d(x, (height, width))


def _compared(found: Patterns) -> tuple[list[tuple[int, float]], float | None, float | None]:
    """Compares groups with classes, and with shuffled ones: returns `common`, `alike` and `alike_chance`."""
    try:
        y = one_class_each(found.targets)
    except ValueError:  # masks, or several labels an image
        return [], None, None
    if not found.sizes:
        return [], None, None
    generator = torch.Generator().manual_seed(0)
    shuffled = [y[torch.randperm(len(y), generator=generator)] for _ in range(_SHUFFLES)]
    alike, *by_chance = (_alike(found, _counts(found, some)) for some in (y, *shuffled))
    common = [(int(c.argmax()), int(c.max()) / int(c.sum())) for c in _counts(found, y)]
    return common, alike, sum(by_chance) / _SHUFFLES


def _counts(found: Patterns, y: Tensor) -> list[Tensor]:
    """Returns the number of images of each class, by group."""
    return [torch.bincount(y[found.group == i]) for i in range(len(found.sizes))]


def _alike(found: Patterns, counts: list[Tensor]) -> float:
    return sum(int(some.max()) for some in counts) / sum(found.sizes)


def find_directions(network: nn.Module, batches: Batches, test: TensorDataset) -> Directions:
    """Finds each class's most relevant direction in a late layer, and tests the network without it.

    Args:
        network: the network.
        batches: images by which directions are found.
        test: images on which the network is tested.

    Raises:
        ValueError: images do not have one class each.
    """
    layers = [*_layers(network, test.tensors[0][:1].to(_device(network)))]
    found = prca(network, batches, layers[3 * len(layers) // 4])
    y = one_class_each(test.tensors[1])
    classes = [
        c for c in range(min(len(found.images), _CLASSES)) if found.images[c] and 0 < int((y == c).sum()) < len(y)
    ]
    if not classes:
        raise ValueError("the images are of one class: there is nothing to tell apart")
    whole = _right(network, test, y)
    own, others = {}, {}
    for c in classes:
        with found.removed(network, c):
            right = _right(network, test, y)
        own[c], others[c] = ((_mean(whole[s]), _mean(right[s])) for s in (y == c, y != c))
    random = _without_random(network, found, test, y)
    return Directions(
        found.layer, found.moments.shape[1], len(y), own, others, {c: _mean(random[:, y == c]) for c in classes}
    )


def _without_random(network: nn.Module, found: ClassSubspaces, test: TensorDataset, y: Tensor) -> Tensor:
    """Returns whether each image is recognised (draws, N) without a random direction."""
    module, generator = network.get_submodule(found.layer), torch.Generator().manual_seed(0)
    rows = []
    for _ in range(_DRAWS):
        direction = torch.randn(found.moments.shape[1], 1, generator=generator, dtype=torch.float64)
        with without_directions(module, direction, found.mean):
            rows.append(_right(network, test, y))
    return torch.stack(rows)


def _right(network: nn.Module, test: TensorDataset, y: Tensor) -> Tensor:
    """Returns whether each image is recognised, (N,) bool."""
    with eval_mode(network), torch.no_grad():
        parts = [class_logits(network(x.to(_device(network)))).argmax(1).cpu() for x in test.tensors[0].split(64)]
    return torch.cat(parts) == y


def _device(network: nn.Module) -> torch.device:
    return next(iter(network.parameters()), torch.empty(0)).device


def _mean(right: Tensor) -> float:
    return float(right.double().mean())
