"""Changed images: masks follow, every image by its own numbers, black and white stay the ends, a crop is a part."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from explainfix_ext.training.augment import Augment, parse_augment

MEAN, STD = (0.3, 0.5), (0.2, 0.25)


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def changed(names: str, pixels: Tensor, targets: Tensor) -> Sequence[Tensor]:
    """The pixels from 0 to 1, and the targets, after a change by `names`."""
    images, targets = Augment(names, MEAN, STD, tuple(pixels.shape[2:]))((normalised(pixels), targets))
    return images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None], targets


def test_flips_are_of_the_image_and_its_mask() -> None:
    pixels = torch.rand(64, 2, 5, 6)
    images, masks = changed("flip", pixels, pixels[:, :1])
    torch.testing.assert_close(images[:, :1], masks)
    ways: set[tuple[int, ...]] = set()
    for before, after in zip(pixels, images, strict=True):
        ways |= {axes for axes in ((), (1,), (2,), (1, 2)) if torch.allclose(before.flip(axes), after, atol=1e-6)}
    assert ways == {(), (1,), (2,), (1, 2)}
    labels = torch.arange(64)
    assert changed("flip", pixels, labels)[1] is labels


def test_inversion_is_of_half_of_the_images() -> None:
    pixels = torch.rand(200, 2, 3, 3)
    images, _ = changed("invert", pixels, torch.zeros(200))
    pairs = zip(pixels, images, strict=True)
    inverted = torch.tensor([torch.allclose(after, 1 - before, atol=1e-5) for before, after in pairs])
    torch.testing.assert_close(images[~inverted], pixels[~inverted], atol=1e-5, rtol=0)
    assert 70 < int(inverted.sum()) < 130


def test_brightness_and_noise_are_of_most_images_and_end_at_black_and_white() -> None:
    pixels = torch.full((400, 2, 8, 8), 0.5)
    shifted, _ = changed("shift", pixels, torch.zeros(400))
    shift = (shifted - pixels).flatten(1)
    assert float((shift.amax(1) - shift.amin(1)).max()) < 1e-5  # all pixels alike
    assert 0.35 < float(shift.abs().max()) <= 0.4 + 1e-5
    assert 0.7 < float((shift[:, 0].abs() > 1e-5).float().mean()) < 0.9
    noisy, _ = changed("noise", pixels, torch.zeros(400))
    deviation = (noisy - pixels).flatten(1).std(1)
    assert 0.7 < float((deviation > 1e-3).float().mean()) < 0.9
    assert float(deviation[deviation > 1e-3].min()) > 0.08
    assert float(deviation.max()) < 0.23
    for name in ("shift", "noise"):
        images, _ = changed(name, (pixels > 0.4).float(), torch.zeros(400))
        assert float(images.max()) <= 1 + 1e-5


def test_a_crop_is_a_part_of_the_image_and_of_its_mask() -> None:
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(7), indexing="ij")
    places = (rows * 7 + columns).float()[None, None].expand(50, 2, 9, 7) / 63
    images, masks = changed("crop:4", places, places[:, :1])
    assert images.shape == (50, 2, 4, 4)
    torch.testing.assert_close(images[:, :1], masks)
    corners = (masks[:, 0, 0, 0] * 63).round().long()
    assert {*(corners // 7).tolist()} == set(range(6))
    assert {*(corners % 7).tolist()} == set(range(4))
    expected = corners[:, None, None] + (7 * torch.arange(4)[:, None] + torch.arange(4))
    torch.testing.assert_close(masks[:, 0] * 63, expected.float(), atol=1e-3, rtol=0)


def test_nothing_is_changed_without_a_name_and_names_come_in_order() -> None:
    batch = (torch.randn(3, 2, 4, 4), torch.zeros(3))
    assert Augment(None, MEAN, STD, (4, 4))(batch) is batch
    assert list(parse_augment(" crop:3, flip,noise")) == ["crop", "flip", "noise"]
    before = batch[0].clone()
    Augment("flip,noise,shift,invert,crop:3", MEAN, STD, (4, 4))(batch)
    assert torch.equal(batch[0], before)


@pytest.mark.parametrize("names", ["flips", "flip,flip", "crop", "crop:0", "crop:x", "flip:3", "flip,"])
def test_unknown_names_are_told(names: str) -> None:
    with pytest.raises(ValueError, match="augment must be of flip, noise, shift, invert and crop:PIXELS, each once, g"):
        parse_augment(names)


def test_a_crop_must_fit_the_images() -> None:
    with pytest.raises(ValueError, match="augment crop:5 is larger than the images, which are 9x4"):
        Augment("crop:5", MEAN, STD, (9, 4))
    with pytest.raises(ValueError, match="augment changes images, and the data are signals: leave out flip"):
        Augment("flip", MEAN, STD, (50,))
