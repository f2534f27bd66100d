"""BBBC038 by its stages: trained on one folder, tested on another, whose nuclei are run lengths in a table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason='needs the extra "demo"')

from PIL import Image

from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.sources import nuclei

HEAD = ("ImageId", "EncodedPixels", "Height", "Width", "Usage")


def write_image(folder: Path, name: str, pixels: np.ndarray) -> None:
    (folder / name / "images").mkdir(parents=True)
    Image.fromarray(pixels).save(folder / name / "images" / f"{name}.png")


def run_lengths(mask: np.ndarray) -> str:
    """Down the columns, from 1, by walking over the pixels."""
    pairs, before = [], 0
    for place, value in enumerate(mask.T.flatten().tolist(), start=1):
        if value and not before:
            pairs.append([place, 0])
        if value:
            pairs[-1][1] += 1
        before = value
    return " ".join(f"{start} {length}" for start, length in pairs)


def write_table(path: Path, rows: list[tuple]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([HEAD, *rows])


@pytest.fixture
def bowl(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Ten training images of 8 x 12; of stage 2, three test images, one of which does not count."""
    rng = np.random.default_rng(0)
    for i in range(10):
        write_image(tmp_path / "stage1_train", f"t{i}", rng.integers(0, 256, (8, 12), dtype=np.uint8))
        mask = np.zeros((8, 12), np.uint8)
        mask[:4, : i + 1] = 255
        (tmp_path / "stage1_train" / f"t{i}" / "masks").mkdir()
        Image.fromarray(mask).save(tmp_path / "stage1_train" / f"t{i}" / "masks" / "0.png")
    masks, rows = {}, []
    for name in ("b", "a"):
        parts = rng.random((2, 8, 12)) < 0.3  # two nuclei
        masks[name] = parts.any(0)
        rows += [(name, run_lengths(part), 8, 12, "Private") for part in parts]
        write_image(tmp_path / "stage2_test_final", name, np.where(masks[name], 200, 20).astype(np.uint8))
    write_image(tmp_path / "stage2_test_final", "ignored", np.zeros((30, 30), np.uint8))
    write_table(tmp_path / "stage2_solution_final.csv", [("ignored", "1 1", 30, 30, "Ignored"), *rows])
    return tmp_path, masks


def test_stage_2_is_the_test_set(bowl: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, masks = bowl
    data = load_dataset(f"bbbc038:{root}?test=stage2")
    assert [len(part) for part in (data.train, data.val, data.test)] == [9, 1, 2]
    images, targets = data.test.tensors
    expected = torch.from_numpy(np.stack([*masks.values()]))[:, None]
    assert torch.equal(targets, expected.float())
    assert torch.equal(images > images.mean(), expected)  # the image of each is beside its mask
    resized = load_dataset(f"bbbc038:{root}?test=stage2&size=24").test.tensors[1]
    assert resized.shape == (2, 1, 24, 24)
    assert abs(float(resized.mean() - expected.float().mean())) < 0.05
    whole = load_dataset(f"bbbc038:{root}")  # the folder stage1_train alone, in three parts
    assert [len(part) for part in (whole.train, whole.val, whole.test)] == [8, 1, 1]
    alone = load_dataset(f"bbbc038:{root / 'stage1_train'}")
    assert all(torch.equal(*pair) for pair in zip(whole.test.tensors, alone.test.tensors, strict=True))


def test_run_lengths_go_down_the_columns() -> None:
    """The example of the competition: pixels are numbered from top to bottom, then left to right; 1 is pixel (1, 1)."""
    mask = np.zeros((3, 4), bool)
    nuclei._draw("here", "2 1 5 3", mask)
    assert np.argwhere(mask).tolist() == [[0, 2], [1, 0], [1, 1], [2, 1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "0 3", 8, 12, ""), "line 2: EncodedPixels must be pairs of first pixel and count in 8 x 12 pixels, got"),
        (("a", "95 3", 8, 12, ""), "line 2: EncodedPixels must be pairs"),
        (("a", "1", 8, 12, ""), "line 2: EncodedPixels must be pairs"),
        (("a", "1 -3", 8, 12, ""), "line 2: EncodedPixels must be pairs"),
        (("a", "1 99999999999999999999", 8, 12, ""), "line 2: EncodedPixels must be pairs"),
        (("a", "1 1", 8, "x", ""), "line 2: Height and Width must be pixels, got '8, x'"),
        (("a", "1 1", 8, 99999999999, ""), "line 2: Height and Width must be pixels"),
        (("a", "1 1", 999999, 999999, ""), "as float32 and this machine has"),
        (("a", "1 1", 12, 8, ""), r"a: masks are \[12, 8\] pixels, the image \[8, 12\]"),
        (("a", "1 1", 8, 12, "Ignored"), "has no image that counts: all are ignored"),
        (("c", "1 1", 8, 12, ""), r"c lacks images/\*.png: "),
    ],
)
def test_broken_solutions_are_told(bowl: tuple[Path, dict[str, np.ndarray]], row: tuple, message: str) -> None:
    root, _ = bowl
    write_table(root / "stage2_solution_final.csv", [row])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_dataset(f"bbbc038:{root}?test=stage2")


def test_what_is_not_there_is_told(bowl: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = bowl
    with pytest.raises(FileNotFoundError, match=r"stage1_solution.csv not found: expected stage1_solution.csv"):
        load_dataset(f"bbbc038:{root}?test=stage1")
    with pytest.raises(ValueError, match=r"options of bbbc038 are \?size=PIXELS&test=split\|stage1\|stage2, such as"):
        load_dataset(f"bbbc038:{root}?test=stage3")
    write_table(root / "stage2_solution_final.csv", [("a", "1 1", 8, 12, ""), ("a", "1 1", 8, 13, "")])
    with pytest.raises(ValueError, match=r"line 3: the image was \[8, 12\] pixels before, now \[8, 13\]"):
        load_dataset(f"bbbc038:{root}?test=stage2")
