"""CheXpert: its files, its policy, saliency where labels are not known, and a whole run."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("torchvision", reason='needs the extra "demo"')

from PIL import Image

from explainfix_ext.explain.saliency import default_cost
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.sources import chexpert

FOLDER = "CheXpert-v1.0-small"
HEAD = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.TASKS)
EDEMA = HEAD.index("Edema")


def write_table(root: Path, split: str, patients: range, cells: np.ndarray) -> list[Path]:
    """Two views of each patient, 20 x 16 pixels: bright where there is an edema. One file of each is a PNG."""
    files = []
    with open(root / f"{split}.csv", "w", newline="") as text:
        table = csv.writer(text)
        table.writerow(HEAD)
        for row, patient in enumerate(np.repeat(patients, 2)):
            name = f"view{row % 2 + 1}_{'frontal.jpg' if row % 2 == 0 else 'lateral.png'}"
            path = Path(split) / f"patient{patient:05}" / "study1" / name
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            bright = 90 + 80 * (cells[row, EDEMA - 5] == "1.0")
            pixels = np.random.default_rng(row).normal(bright, 20, (20, 16)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / path)
            files.append(root / path)
            view = ("Frontal", "AP") if row % 2 == 0 else ("Lateral", "")
            table.writerow([f"{FOLDER}/{path.as_posix()}", "Female", 70, *view, *cells[row]])
    return files


@pytest.fixture
def miniature(tmp_path: Path) -> Path:
    """40 and 8 patients. In valid.csv, nobody has a fracture and everything is certain, as in the real one."""
    rng, root = np.random.default_rng(0), tmp_path / FOLDER
    root.mkdir()
    write_table(root, "train", range(1, 41), rng.choice(["1.0", "0.0", "-1.0", ""], (80, 14)))
    cells = rng.choice(["1.0", "0.0"], (16, 14))
    cells[:, chexpert.TASKS.index("Fracture")] = "0.0"
    write_table(root, "valid", range(64541, 64549), cells)
    return root


def rows(root: Path, split: str) -> list[dict[str, str]]:
    with open(root / f"{split}.csv", newline="") as text:
        return list(csv.DictReader(text))


# Loading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "names"), [("", chexpert.LEADERBOARD), ("&tasks=14", chexpert.TASKS)])
def test_targets_follow_the_policy(miniature: Path, option: str, names: tuple[str, ...]) -> None:
    data = load_dataset(f"chexpert:{miniature}?size=16{option}")
    assert (data.task, data.classes, data.outputs, data.channels) == ("multilabel", len(names), len(names), 1)
    assert data.labels == names
    policy = {"1.0": 1.0, "0.0": 0.0, "": 0.0, "-1.0": math.nan}
    expected = torch.tensor([[policy[row[name]] for name in names] for row in rows(miniature, "valid")])
    images, targets = data.test.tensors
    assert torch.equal(targets, expected)
    assert (images.shape, targets.dtype) == ((16, 1, 16, 16), torch.float32)
    table = rows(miniature, "train")
    held = [row["Path"] for row in table if row["Path"] in set(validation_paths(miniature))]
    for part, wanted in ((data.val, True), (data.train, False)):
        chosen = [row for row in table if (row["Path"] in held) == wanted]
        expected = torch.tensor([[policy[row[name]] for name in names] for row in chosen])
        torch.testing.assert_close(part.tensors[1], expected, equal_nan=True, rtol=0, atol=0)
    assert data.train.tensors[1].isnan().any()


def validation_paths(root: Path) -> list[str]:
    files, _ = chexpert.read_table(root / "train.csv", chexpert.LEADERBOARD)
    return [f"{FOLDER}/{files[row].relative_to(root).as_posix()}" for row in chexpert.patients_apart(files)[1]]


def test_patients_are_either_trained_or_validated_on(miniature: Path) -> None:
    files, _ = chexpert.read_table(miniature / "train.csv", chexpert.LEADERBOARD)
    train, val = chexpert.patients_apart(files)
    patients = [{files[row].parts[-3] for row in part} for part in (train, val)]
    assert not patients[0] & patients[1]
    assert [len(part) for part in patients] == [36, 4]
    assert sorted(train + val) == list(range(80))
    for seed in (0, 1):
        data = load_dataset(f"chexpert:{miniature}?size=8", seed)
        assert (len(data.train), len(data.val), len(data.test)) == (72, 8, 16)


def test_the_split_of_the_paper_is_by_images(miniature: Path) -> None:
    data = load_dataset(f"chexpert:{miniature}?size=8&split=images")
    assert (len(data.train), len(data.val), len(data.test)) == (56, 24, 16)
    whole = torch.utils.data.random_split(range(80), [56, 24], torch.Generator().manual_seed(138))
    _, targets = chexpert.read_table(miniature / "train.csv", chexpert.LEADERBOARD)
    for part, rows in zip((data.train, data.val), whole, strict=True):
        torch.testing.assert_close(part.tensors[1], targets[list(rows)], equal_nan=True, rtol=0, atol=0)


def test_views_of_a_study_are_known(miniature: Path) -> None:
    studies = load_dataset(f"chexpert:{miniature}?size=8").studies
    assert torch.equal(studies, torch.arange(8).repeat_interleave(2))
    files = [Path(f"valid/patient{p}/study{s}/view{v}.jpg") for p, s, v in ((1, 1, 1), (1, 2, 1), (2, 1, 1), (1, 2, 2))]
    assert chexpert.studies_of(files).tolist() == [0, 1, 2, 1]


def test_images_are_those_of_their_rows_whatever_the_folder_is_called(miniature: Path) -> None:
    moved = miniature.rename(miniature.with_name("chest x-rays"))
    images, targets = load_dataset(f"chexpert:{moved}").test.tensors
    assert images.shape == (16, 1, 20, 16)
    edema = targets[:, chexpert.LEADERBOARD.index("Edema")] == 1
    means = images.mean((1, 2, 3))
    assert means[edema].min() > means[~edema].max()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "?tasks=6",
            r"the only options of chexpert are \?size=PIXELS&tasks=5\|14&split=.*images, such as .*, got 'chexpert:",
        ),
        ("?size=0", r"the only options of chexpert are \?size=PIXELS&tasks=5\|14"),
        ("?policy=ones", r"the only options of chexpert"),
    ],
)
def test_bad_options_are_told(miniature: Path, option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(f"chexpert:{miniature}{option}")


def test_broken_tables_are_told(miniature: Path) -> None:
    spec = f"chexpert:{miniature}?size=8"
    with pytest.raises(FileNotFoundError, match=r"train.csv not found: expected the folder CheXpert-v1.0-small"):
        load_dataset(f"chexpert:{miniature / 'train'}")
    original = (miniature / "train.csv").read_text()
    head, first = original.splitlines()[:2]
    cells = first.split(",")
    for old, new, message in (
        ("Edema", "Oedema", "has no column 'Edema' but Path, Sex, Age"),
        ("Path", "File", "has no column 'Path' but File, Sex"),
        (
            f"{FOLDER}/train/patient00001",
            "patient00001",
            ", line 2: Path must be FOLDER/train/PATIENT/STUDY/IMAGE",
        ),
        (first, ",".join([*cells[:EDEMA], "maybe", *cells[EDEMA + 1 :]]), ", line 2: Edema must be 1.0, .*got 'maybe'"),
        (first, ",".join(cells[:-1]), ", line 2: expected 19 cells"),
        (first, f"{first},1.0", ", line 2: expected 19 cells"),
        (original, head, "has no rows"),
        (original, "", "has no column 'Path' but "),
    ):
        (miniature / "train.csv").write_text(original.replace(old, new, 1))
        with pytest.raises(ValueError, match=f"train.csv ?{message}"):
            load_dataset(spec)
    (miniature / "train.csv").write_text(original)
    (miniature / "valid.csv").unlink()
    with pytest.raises(FileNotFoundError, match="valid.csv not found"):
        load_dataset(spec)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_spreadsheets_are_read(miniature: Path, encoding: str, delimiter: str) -> None:
    file = miniature / "train.csv"
    images, targets = chexpert.read_table(file, chexpert.TASKS)
    lines = [delimiter.join(f'"{cell}"' for cell in row) for row in csv.reader(file.read_text().splitlines())]
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    file.write_bytes((mark + "\r\n".join(lines)).encode(encoding))
    again = chexpert.read_table(file, chexpert.TASKS)
    assert again[0] == images
    torch.testing.assert_close(again[1], targets, equal_nan=True)


def test_tables_that_cannot_be_read_are_told(miniature: Path) -> None:
    file = miniature / "train.csv"
    original = file.read_text()
    head, first, rest = original.split("\n", 2)
    for content, message in (
        (original.encode("utf-16-le"), " is no text in UTF-8, nor in UTF-16 with its mark"),
        (f'{head}\n"{first}\n{rest}'.encode(), ", line .* cannot be read .*: expected a table"),  # a quote left open
        (b'"a\nb",' * 1000 + b"c", " has no column 'Path' but a b, a b.*, \\.\\.\\.$"),
        (f"{head}\n{'x' * 200_000}\n".encode(), ", line .* cannot be read .*field larger"),
        (original.replace("Sex", "Edema", 1).encode(), " has 2 columns 'Edema' but Path, Edema, Age"),
        (original.replace("Sex", "S\xe9x", 1).replace("Path", "File", 1).encode("latin-1"), " has no column 'Path'"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"train.csv{message}") as error:
            chexpert.read_table(file, chexpert.LEADERBOARD)
        assert "\n" not in str(error.value)


def test_broken_images_are_told(miniature: Path) -> None:
    image = miniature / "valid" / "patient64541" / "study1" / "view1_frontal.jpg"
    Image.new("L", (30, 30)).save(image)
    with pytest.raises(
        ValueError, match=r"patient64541/study1/view1_frontal.jpg is \[30, 30\] pixels.*\[20, 16\]: add \?size=128"
    ):
        load_dataset(f"chexpert:{miniature}")
    image.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ValueError, match=r"patient64541/study1/view1_frontal.jpg cannot be read"):
        load_dataset(f"chexpert:{miniature}?size=8")
    image.unlink()
    with pytest.raises(ValueError, match=r"view1_frontal.jpg cannot be read .*No such file"):
        load_dataset(f"chexpert:{miniature}?size=8")


def test_too_many_images_are_refused_before_they_are_read(miniature: Path) -> None:
    for image in (miniature / "train" / "patient00002").rglob("*.*"):
        image.write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"96 images like .*patient00001.* takes .* GiB as float32"):
        load_dataset(f"chexpert:{miniature}?size=1000000")


# Saliency -----------------------------------------------------------------------------------------------------------


def test_unknown_targets_have_no_saliency() -> None:
    logits, y = torch.randn(3, 5), torch.ones(3, 5)
    y[1] = math.nan
    torch.testing.assert_close(default_cost(logits, y), logits[[0, 2]].sum())


# A whole run ----------------------------------------------------------------------------------------------------------


def test_training_tests_every_task(run, miniature: Path, tmp_path: Path) -> None:
    options = f"--data 'chexpert:{miniature}?size=16&tasks=14' --epochs 1 --batch-size 8 --limit 24 --device cpu"
    code, out, err = run(f"train {options} --init learned,dct2 --out runs --json")
    assert code == 0, err
    results = json.loads(out)
    assert (results["metric"], results["data"]["classes"]) == ("auroc", 14)
    assert results["data"]["labels"] == list(chexpert.TASKS)
    assert [results["data"][part] for part in ("train", "val", "test")] == [72, 8, 16]
    for record in results["runs"]:
        tested = record["test"]
        tasks = {name.removeprefix("auroc/"): value for name, value in tested.items() if name.startswith("auroc/")}
        assert list(tasks) == [name for name in chexpert.TASKS if name != "Fracture"]  # nobody has one
        assert tested["auroc"] == pytest.approx(sum(tasks.values()) / 13)
        for measure in ("mcc", "study_auroc"):
            each = [tested[f"{measure}/{name}"] for name in tasks if f"{measure}/{name}" in tested]
            assert tested[measure] == pytest.approx(sum(each) / len(each))
        assert [*record["confusion"]] == list(chexpert.TASKS)
        assert record["confusion"]["Fracture"][1] == [0, 0]
        assert all(math.isfinite(tested[name]) for name in ("loss", "accuracy"))
    assert err == ""
    code, shown, err = run(f"train {options} --init learned,dct2 --out runs --resume")
    assert code == 0, err
    assert "one class only" in next(line for line in shown.splitlines() if "Fracture" in line)
    assert f"{results['runs'][1]['test']['auroc/Edema']:.4f}" in next(
        line for line in shown.splitlines() if "Edema" in line
    )


def test_training_on_a_broken_folder_is_one_line(run, miniature: Path) -> None:
    (miniature / "train.csv").unlink()
    code, out, err = run(f"train --data chexpert:{miniature} --out runs --json")
    assert (code, out) == (2, "")
    assert "train.csv not found" in err
    assert not Path("runs").exists()
