"""Computes where a network looks in images of each class, and at which frequencies, beside two floors.

`run` calls `find_frequencies`; `pictures`, `tables` and `findings` show what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from explainfix_ext.explain.frequency_relevance import BANDS, FrequencyMaps, frequency_relevance
from explainfix_ext.training.data import Dataset

DRAWN = 3  # images of a class that are drawn
_MOST_CLASSES = 10  # the first ones
_IMAGES = 64  # in all, as far as 3 to 32 of each class make that
BATCH = 8  # images at a time; the layer is chosen on the first of them
_DRAWS = 1000  # permutations of the classes
_SURE = 2  # standard errors by which a difference must be larger than zero to be called one


@dataclass(frozen=True)
class Frequencies:
    """Holds the shares of bands of frequencies in what speaks for the true class, on test images.

    Attributes:
        layer: the layer whose bands differ most in where they look, on the first images.
        bits: name of a layer -> by how much they do; `bits_of_place` says how.
        classes: (N,), the place in `names` of each image's class.
        names: of the classes.
        images: (N, H, W), the images, averaged over their channels.
        maps: name of a band -> (N, H, W), where it speaks for the true class.
        shares: name of a band -> (N,), its share.
        shuffled: the same on images whose pixels change places, as a floor: with the values of the images, and the
            network, but without any structure.
        without: number of images that are left out, because the layer adds nothing there, shuffled or not.
    """

    layer: str
    bits: dict[str, float]
    classes: Tensor
    names: tuple[str, ...]
    images: Tensor
    maps: dict[str, Tensor]
    shares: dict[str, Tensor]
    shuffled: dict[str, Tensor]
    without: int = 0

    def drawn(self) -> Tensor:
        """Returns the places of the first images of each class, class by class."""
        return torch.cat([(self.classes == k).nonzero()[:DRAWN, 0] for k in range(len(self.names))])

    @property
    def blur(self) -> int:
        """The odd number of pixels, in each direction, over which drawn maps are averaged: 3 for 28 x 28 images."""
        return 1 + 2 * (max(self.images.shape[1:]) // 28)

    def gain(self, band: str) -> tuple[float, bool]:
        """Returns how much larger a band's mean share is than on shuffled images, and whether that is sure."""
        difference = (self.shares[band] - self.shuffled[band]).double()
        error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else torch.tensor(torch.inf)
        return float(difference.mean()), bool(difference.mean().abs() > _SURE * error)

    def by_class(self, classes: Tensor) -> Tensor:
        """Returns the mean share of each band (row) in each class (column)."""
        shares = torch.stack([self.shares[band] for band in self.shares]).double()
        member = torch.nn.functional.one_hot(classes, len(self.names)).double()
        return shares @ member / member.sum(0)

    @cached_property
    def floor(self) -> float:
        """The difference between classes that 95 % of random permutations of the classes stay below."""
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(_DRAWS):
            order = torch.randperm(len(self.classes), generator=generator)
            found.append(_largest_difference(self.by_class(self.classes[order])))
        return float(torch.tensor(found, dtype=torch.float64).quantile(0.95))

    @property
    def difference(self) -> float:
        """The largest difference between the mean shares of a band in two classes."""
        return _largest_difference(self.by_class(self.classes))


def _largest_difference(means: Tensor) -> float:
    return float((means.amax(1) - means.amin(1)).max())


def find_frequencies(network: nn.Module, data: Dataset, device: torch.device, step: Callable[[], None]) -> Frequencies:
    """Computes the maps and shares of some test images.

    Args:
        network: it is not changed.
        data: the test images are taken.
        device: where the network is.
        step: is called after each batch, `batches(data)` times.

    Raises:
        ValueError: no layer has frequencies, no image has a class, or the layer adds nothing to any.
    """
    x, target, classes, names = _chosen(data)
    x, target = x.to(device), target.to(device)
    bits = frequency_relevance(network, x[:BATCH], target[:BATCH]).bits
    layer = max(bits, key=bits.__getitem__)
    step()
    sides: list[list[FrequencyMaps]] = []
    for images in (x, _shuffled(x)):
        sides.append([])
        for some, wanted in zip(images.split(BATCH), target.split(BATCH), strict=True):
            sides[-1].append(frequency_relevance(network, some, wanted, layer))
            step()
    real, shuffled = sides
    told = torch.cat([found.share["low"] for found in real]) + torch.cat([found.share["low"] for found in shuffled])
    kept = told.isfinite().nonzero()[:, 0].cpu()
    if not len(kept):
        raise ValueError(f"layer {layer!r}, whose bands differ most, adds nothing to the true class of any image")
    there, classes = classes[kept].unique(return_inverse=True)

    def joined(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([*parts]).cpu()[kept]

    return Frequencies(
        layer=layer,
        bits=bits,
        classes=classes,
        names=tuple(names[k] for k in there.tolist()),
        images=joined(found.image for found in real),
        maps={band: joined(found.map[band] for found in real) for band in BANDS},
        shares={band: joined(found.share[band] for found in real) for band in BANDS},
        shuffled={band: joined(found.share[band] for found in shuffled) for band in BANDS},
        without=len(x) - len(kept),
    )


def batches(data: Dataset) -> int:
    """Returns how often `find_frequencies` calls `step`."""
    return 1 + 2 * -(-len(_chosen(data)[0]) // BATCH)


def _chosen(data: Dataset) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Chooses test images: returns them, their targets and classes (N,), and the names of the classes.

    One image of each class follows another, so that the first ones are of all classes.
    """
    images, targets = data.test.tensors
    if data.task == "segmentation":  # what speaks for the true pixels
        members, names = [targets.flatten(1).any(1)], ["foreground"]
    elif data.task == "multilabel":
        members = [targets[:, k] == 1 for k in range(data.classes)]
        names = [*data.labels] or [f"label {k}" for k in range(data.classes)]
    else:
        members = [targets.flatten() == k for k in range(data.classes)]
        names = [f"class {k}" for k in range(data.classes)]
    places = {name: member.nonzero()[:, 0] for name, member in zip(names, members, strict=True) if member.any()}
    if not places:
        raise ValueError("no test image has a class")
    kept = [*places][:_MOST_CLASSES]
    count = max(DRAWN, min(32, _IMAGES // len(kept)))
    pairs = sorted((turn, k, int(i)) for k, name in enumerate(kept) for turn, i in enumerate(places[name][:count]))
    at, classes = torch.tensor([i for *_, i in pairs]), torch.tensor([k for _, k, _ in pairs])
    target = targets[at]
    if data.task == "binary":
        target = 2 * target - 1  # one logit: its negative speaks for class 0
    elif data.task == "multilabel":
        label = torch.tensor([names.index(kept[k]) for k in classes.tolist()])
        target = torch.nn.functional.one_hot(label, data.classes).to(target)
    return images[at], target, classes, tuple(kept)


def _shuffled(x: Tensor) -> Tensor:
    """Returns images whose pixels change places, in each image in another way, all channels alike."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(len(x), x[0, 0].numel(), generator=generator).argsort(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, order.to(x.device)).reshape(x.shape)
