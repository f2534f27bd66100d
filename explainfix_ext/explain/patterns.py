"""patterns finds groups of images that a layer treats alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explainfix_ext._support.text import table_lines

from .features import Data, layer_features, one_layer


@dataclass(frozen=True, eq=False)
class Patterns:
    """Patterns are groups of images that a layer treats alike; `patterns` makes them, `print` shows their sizes.

    Attributes:
        layer: name of the layer.
        group: (N,) int64, the group of each image in the order of the data, 0 being the largest; -1: no group.
        probability: (N,) float64, from 0 to 1, how firmly an image belongs to its group.
        features: (N, K) float64, the mean of each channel, by which images were grouped.
        targets: y of all images, which grouping did not use.
        chance: share of the images that are in a group when each channel is shuffled among the images.

    Examples:
        >>> found = patterns(nn.Sequential(nn.ReLU()), [(torch.randn(40, 3, 4, 4), torch.zeros(40))], "0")
        >>> found.group.shape, found.features.shape
        (torch.Size([40]), torch.Size([40, 3]))
    """

    layer: str
    group: Tensor
    probability: Tensor
    features: Tensor
    targets: Tensor
    chance: float

    @property
    def sizes(self) -> list[int]:
        """The number of images in each group, from the largest."""
        return torch.bincount(self.group[self.group >= 0]).tolist()

    @property
    def grouped(self) -> float:
        """The share of the images that are in a group."""
        return float((self.group >= 0).double().mean())

    def typical(self, group: int, count: int = 8) -> Tensor:
        """Returns the images that are most typical of a group, the most typical first.

        Args:
            group: number of the group.
            count: the largest number of images.

        Returns:
            Their numbers (count,) in the order of the data, int64: those that belong to it most firmly, and of equally
            firm ones those nearest to its mean.

        Raises:
            ValueError: there is no such group.
        """
        members = torch.nonzero(self.group == group).flatten()
        if group < 0 or not len(members):
            raise ValueError(f"group must be from 0 to {len(self.sizes) - 1}, got {group}")
        distance = (self.features[members] - self.features[members].mean(0)).norm(dim=1)
        near = members[distance.argsort(dim=0, stable=True)]
        return near[self.probability[near].argsort(dim=0, descending=True, stable=True)][:count]

    def __str__(self) -> str:
        rows = [
            ("group", "images", "share"),
            *((f"{i}", f"{n}", f"{n / len(self.group):.1%}") for i, n in enumerate(self.sizes)),
        ]
        share = f"{self.grouped:.1%} of {len(self.group):,} images are in a group"
        return "\n".join([*table_lines(rows, numbers=True), f"{self.layer}: {share}; by chance {self.chance:.1%}"])


def patterns(
    model: nn.Module,
    data: Data,
    layer: str,
    *,
    min_size: int = 10,
    num_batches: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Patterns:
    """Groups images by what a layer makes of them, without looking at their labels.

    The mean of each channel over positions is a point for each image, and HDBSCAN finds where these points lie dense:
    the leaves of its tree, as else most images of a middle layer are one group. Images elsewhere belong to no group.
    What is left when every channel is shuffled among the images, on its own, is
    chance: the channels are as before, and have nothing to do with each other.

    The model runs in eval mode, and is not changed. This needs scikit-learn 1.3 (the extra `explain`).

    Args:
        model: any network.
        data: batches (x, y), such as a DataLoader; y is returned, and not used. Work grows as the square of the number
            of images.
        layer: name of a layer with an output of (N, K) or (N, K, H, W); best an activation, or a block that ends in
            one.
        min_size: the smallest group, in images, 2 at least.
        num_batches: how many batches to use, the first ones; None: all.
        seed: seed for shuffling.
        progress: show a bar over the batches on stderr (needs rich).

    Returns:
        Patterns, on the CPU.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: there is no such layer, or it gives another shape or numbers that are not finite; min_size is below
            2; there are fewer images than min_size.
        ImportError: scikit-learn is not installed; or progress=True, and rich is not.

    Examples:
        >>> x = torch.rand(40, 2, 4, 4) + 9 * (torch.arange(40) % 2)[:, None, None, None]  # two kinds of images
        >>> found = patterns(nn.Sequential(nn.ReLU()), [(x, torch.zeros(40))], "0")
        >>> found.sizes
        [20, 20]

        The equivalent PyTorch, up to the clustering:

        >>> torch.allclose(found.features, x.relu().double().mean((2, 3)))
        True

    Source: Bäuerle et al., Neural Activation Patterns (NAPs): Visual Explainability of Learned Concepts (2022).
    """
    module = one_layer(model, layer)
    if isinstance(min_size, bool) or not isinstance(min_size, int) or min_size < 2:
        raise ValueError(f"min_size must be an integer, 2 at least, got {min_size!r}")
    _check_scikit_learn()
    features, y = layer_features(model, data, {layer: module}, num_batches, "patterns" if progress else "")
    points = features[layer]
    if len(points) < min_size:
        raise ValueError(f"data must have {min_size} images at least (min_size), got {len(points)}")
    group, probability = _clusters(points, min_size)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(points.shape, generator=generator).argsort(0)
    by_chance, _ = _clusters(points.gather(0, orders), min_size)
    return Patterns(layer, group, probability, points, y, float((by_chance >= 0).double().mean()))


def _check_scikit_learn() -> None:
    try:
        from sklearn.cluster import HDBSCAN  # noqa: F401
    except ImportError:
        raise ImportError('patterns needs scikit-learn: pip install "explainfix_ext[explain]"') from None


def _clusters(points: Tensor, min_size: int) -> tuple[Tensor, Tensor]:
    """Returns the group (N,) of each point, the largest being 0 and -1 none, and its probability (N,)."""
    from sklearn.cluster import HDBSCAN

    found = HDBSCAN(min_cluster_size=min_size, min_samples=min_size, cluster_selection_method="leaf", copy=True)
    found.fit(points.numpy())
    labels, probability = torch.as_tensor(found.labels_).long(), torch.as_tensor(found.probabilities_).double()
    sizes = torch.bincount(labels[labels >= 0])
    rank = sizes.argsort(dim=0, descending=True, stable=True).argsort()
    return torch.where(labels >= 0, torch.cat([rank, rank.new_tensor([-1])])[labels], -1), probability
