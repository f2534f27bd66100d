"""Folders of images: one rule for the names of parts, and a word about everything that is left out."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason='needs the extra "demo"')

from PIL import Image

from explainfix_ext.training.data import load_dataset


def write(*folders: Path, each: int = 3, name: str = "{}.png") -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(each):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / name.format(i))


def classes(root: Path, *parts: str) -> None:
    write(*(root / part / name for part in parts for name in ("a", "b")))


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "VALIDATION", "Testing"),
        ("Train", "valid", "Test"),
        ("training", "dev", "test"),
    ],
)
def test_names_of_parts(tmp_path, train, val, test):
    classes(tmp_path, train, val, test)
    write(tmp_path / train / "a", each=5)
    write(tmp_path / test / "b", each=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset(f"folder:{tmp_path}")
    assert (data.task, *map(len, (data.train, data.val, data.test))) == ("binary", 8, 6, 7)
    assert data.train.tensors[1].flatten().tolist() == [0] * 5 + [1] * 3


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("seg_train", "seg_test"), ("trainset", "b")])
def test_folders_that_may_be_parts_are_no_classes(tmp_path, names):
    classes(tmp_path, *names)
    with pytest.raises(ValueError, match=r"may be a part or a class: name the parts train, val, test$"):
        load_dataset(f"folder:{tmp_path}")


def test_classes_may_have_names_of_parts_in_theirs(tmp_path):
    write(tmp_path / "test tube", tmp_path / "train_steam", tmp_path / "trainers" / "left")
    assert load_dataset(f"folder:{tmp_path}").classes == 3


def test_hidden_folders_and_files_are_no_classes(tmp_path):
    classes(tmp_path, "train", "test")
    hidden = (".ipynb_checkpoints", "__MACOSX", "@eaDir")
    write(*(tmp_path / name / "a" for name in hidden), *(tmp_path / "train" / name for name in hidden))
    write(tmp_path / "train" / "a" / ".ipynb_checkpoints", tmp_path / "train" / "b" / "@eaDir")
    write(tmp_path / "train" / "a", name="._{}.png")
    (tmp_path / "train" / "b" / "Thumbs.db").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset(f"folder:{tmp_path}")
    assert (data.classes, len(data.test)) == (2, 6)
    assert len(data.train) + len(data.val) == 6


def test_what_is_left_out_is_named(tmp_path):
    classes(tmp_path, "train", "test")
    write(tmp_path / "unlabelled", tmp_path / "train" / "a" / "inner")
    for name in ("train/a/x.gif", "train/b/x.DCM", "train/b/y.dcm", "test/loose.png", "notes"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="left out") as told:
        data = load_dataset(f"folder:{tmp_path}")
    (message,) = (str(warning.message) for warning in told)
    files = r"5 files that are no images or in no class (.dcm, .gif, .png, no ending)"
    assert message == f"{tmp_path}: left out {files} and 1 folders (unlabelled)"
    assert len(data.train) + len(data.val) == 9  # with those in a folder of a class


@pytest.mark.parametrize(
    ("folders", "error", "message"),
    [
        (("val/a", "valid/a", "train/a"), ValueError, "has folders val and valid, which are both of val"),
        (("Testing/a", "Testing/b"), FileNotFoundError, "has folders Testing and no train: expected one folder"),
        (("car", "train", "bus"), FileNotFoundError, "train has no folders of classes"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), ValueError, "cat/test is a part in a class: .*test/cat"),
    ],
)
def test_folders_that_may_mean_two_things_are_refused(tmp_path, folders, error, message):
    write(*(tmp_path / folder for folder in folders))
    with pytest.raises(error, match=message):
        load_dataset(f"folder:{tmp_path}")


def test_a_class_without_images_is_told(tmp_path):
    classes(tmp_path, "")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.dcm").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"/c has no images \(.jpg, "):
        load_dataset(f"folder:{tmp_path}")


def test_parts_are_held_against_each_other(tmp_path):
    classes(tmp_path, "train", "test")
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "a" / "0.png")
    with pytest.raises(ValueError, match=r"test/a/0.png is \[9, 9\] pixels, .*train/a/0.png \[8, 8\]: add \?size="):
        load_dataset(f"folder:{tmp_path}")
