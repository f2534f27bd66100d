"""Groups of images that a layer treats alike: two blobs, noise, and what chance gives."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

import explainfix_ext as efx

needs_scikit_learn = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('sklearn')", reason='needs the extra "explain"'
)


def blobs(*sizes: int, spread: float = 0.1, noise: int = 0, seed: int = 0) -> Tensor:
    """Points (N, 3) around corners far apart, and some that are nowhere near to others."""
    g = torch.Generator().manual_seed(seed)
    centres = [10 * torch.tensor([i, i % 2, 1]) for i in range(len(sizes))]
    parts = [c + spread * torch.randn(n, 3, generator=g) for c, n in zip(centres, sizes, strict=True)]
    far = torch.stack([1000.0 * (i + 1) * torch.tensor([1, -1, (-1) ** i]) for i in range(noise)]) if noise else None
    return torch.cat([*parts, *([] if far is None else [far])])


def grouped(points: Tensor, **options: int) -> efx.Patterns:
    """The groups of images whose channels have these means."""
    x = points[:, :, None, None].expand(-1, -1, 2, 2)
    return efx.patterns(nn.Sequential(nn.Identity()), [(x, torch.zeros(len(x)))], "0", **options)


@needs_scikit_learn
@pytest.mark.parametrize("seed", range(10))
def test_golden_two_blobs_of_20_are_two_groups(seed: int) -> None:
    assert grouped(blobs(20, 20, seed=seed)).sizes == [20, 20]


@needs_scikit_learn
def test_the_largest_group_comes_first() -> None:
    found = grouped(blobs(20, 25))
    assert found.sizes == [25, 20]
    assert found.group.tolist() == [1] * 20 + [0] * 25
    assert found.grouped == 1
    assert found.features.shape == (45, 3)


@needs_scikit_learn
def test_what_lies_alone_is_in_no_group() -> None:
    found = grouped(blobs(20, 20, noise=4))
    assert found.group[40:].tolist() == [-1] * 4
    assert found.probability[40:].tolist() == [0] * 4
    assert found.grouped == pytest.approx(40 / 44)


@needs_scikit_learn
def test_shuffled_channels_are_chance() -> None:
    g = torch.Generator().manual_seed(1)
    centres = torch.rand(20, 6, generator=g) * 10
    points = (centres[:, None] + 0.05 * torch.randn(20, 12, 6, generator=g)).flatten(0, 1)
    found = grouped(points)
    assert found.grouped > 0.9
    assert found.chance < 0.2
    assert grouped(points).chance == found.chance


@needs_scikit_learn
def test_labels_are_never_used() -> None:
    x = blobs(20, 20)[:, :, None, None]
    one, two = (efx.patterns(nn.Sequential(nn.ReLU()), [(x, y)], "0") for y in (torch.zeros(40), torch.arange(40)))
    assert torch.equal(one.group, two.group)
    assert two.targets.tolist() == [*range(40)]


@needs_scikit_learn
def test_typical_images_are_firm_members_near_the_mean() -> None:
    found = grouped(blobs(30, 40, spread=0.5))
    for group in (0, 1):
        chosen = found.typical(group, 6)
        assert len(chosen) == 6
        assert (found.group[chosen] == group).all()
        members = torch.nonzero(found.group == group).flatten()
        others = members[~torch.isin(members, chosen)]
        assert found.probability[chosen].min() >= found.probability[others].max()
    assert len(found.typical(1, 100)) == found.sizes[1]
    for group in (-1, 2):
        with pytest.raises(ValueError, match=f"group must be from 0 to 1, got {group}"):
            found.typical(group)


@needs_scikit_learn
def test_the_smallest_group_is_given() -> None:
    assert 8 in grouped(blobs(20, 8), min_size=5).sizes
    assert 8 not in grouped(blobs(20, 8)).sizes
    assert "100.0% of 45 images are in a group" in str(grouped(blobs(20, 25)))


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="min_size must be an integer, 2 at least, got 1"):
        grouped(blobs(9), min_size=1)
    x = blobs(9)[:, :, None, None]
    with pytest.raises(ValueError, match="unknown layer 'layer4'"):
        efx.patterns(nn.Sequential(nn.ReLU()), [(x, x)], "layer4")
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match="patterns needs scikit-learn: pip install"):
        grouped(blobs(9))


@needs_scikit_learn
def test_too_few_images() -> None:
    with pytest.raises(ValueError, match=r"data must have 10 images at least \(min_size\), got 3"):
        grouped(blobs(3))
