"""A table of images and their tags is a data set of several labels an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason='needs the extra "demo"')

from PIL import Image

from explainfix_ext.training.data import load_dataset


@pytest.fixture
def planet(tmp_path: Path) -> Path:
    """30 images of 4 x 4; the brightness of an image is its number, which says its tags."""
    rows = ["image_name,tags"]
    for i in range(30):
        image = tmp_path / "jpg" / ("deep" if i == 7 else "") / f"train_{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(image)
        words = [name for name, n in (("haze", 2), ("primary", 3), ("road", 5)) if i % n == 0]
        rows.append(f"{'deep/' if i == 7 else ''}train_{i},{' '.join(words)}")
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    return tmp_path


def test_tags_are_labels(planet: Path) -> None:
    data = load_dataset(f"table:{planet / 'tags.csv'}?images={planet / 'jpg'}")
    assert (data.task, data.labels, data.channels) == ("multilabel", ("haze", "primary", "road"), 3)
    assert [len(part) for part in (data.train, data.val, data.test)] == [24, 3, 3]
    for part in (data.train, data.val, data.test):
        images, targets = part.tensors
        number = (images * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]) * 255
        numbers = number.mean((1, 2, 3)).round().long()
        assert torch.equal(targets, torch.stack([(numbers % n == 0).float() for n in (2, 3, 5)], 1))


def test_images_may_lie_beside_the_table_and_have_their_ending(planet: Path) -> None:
    table = planet / "jpg" / "tags.csv"
    table.write_text("image,tags\n" + "".join(f"train_{i}.png,{'ab'[i % 2]} c\n" for i in range(20) if i != 7))
    assert load_dataset(f"table:{table}").labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,tags\ntrain_99,a\ntrain_1,b", r"line 2: no images in .*jpg are called 'train_99', expected one"),
        ("image,tags\ntrain_1,a\ntrain_2,a", "tags.csv must have two tags at least, got a: expected a table"),
        ("image,tags\ntrain_1,\n", "must have two tags at least, got none"),
        ("image,labels\ntrain_1,a", "tags.csv has no column 'tags' but image, labels"),
        ("image,image_name,tags\n1,2,a", "has 2 columns 'image'"),
        ("image,tags", "tags.csv has no rows"),
    ],
)
def test_broken_tables_are_told(planet: Path, text: str, message: str) -> None:
    (planet / "tags.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_dataset(f"table:{planet / 'tags.csv'}?images={planet / 'jpg'}")


def test_what_is_not_there_or_twice_is_told(planet: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no.csv not found: expected a table"):
        load_dataset(f"table:{planet / 'no.csv'}")
    with pytest.raises(FileNotFoundError, match=r"nowhere not found: .*\?images=FOLDER"):
        load_dataset(f"table:{planet / 'tags.csv'}?images={planet / 'nowhere'}")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(planet / "jpg" / "train_3.bmp")
    with pytest.raises(ValueError, match="line 5: 2 images in .* are called 'train_3', expected one"):
        load_dataset(f"table:{planet / 'tags.csv'}?images={planet / 'jpg'}")
