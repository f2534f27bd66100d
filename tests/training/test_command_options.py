"""`explainfix train` with what the paper trained with: its losses, changed images, drawn epochs, stages and tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')

from PIL import Image


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_nuclei_of_stage_2_with_dice_and_changed_images(run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        mask = np.zeros((12, 12), np.uint8)
        mask[i % 8 : i % 8 + 4, 3:9] = 255
        folder = tmp_path / "bowl" / ("stage1_train" if i < 16 else "stage2_test_final") / f"n{i}"
        write(folder / "images" / "i.png", (0.7 * mask + rng.integers(0, 60, (12, 12))).astype(np.uint8))
        write(folder / "masks" / "0.png", mask)
    rows = [f"n{i},37 {12 * 6},12,12,Private" for i in range(16, 20)]
    table = tmp_path / "bowl" / "stage2_solution_final.csv"
    table.write_text("\n".join(["ImageId,EncodedPixels,Height,Width,Usage", *rows]))
    line = (
        "train --data 'bbbc038:bowl?test=stage2' --model tiny_mask --init learned,dct2 --epochs 1 --batch-size 4 "
        "--loss generalized_dice --augment flip,noise,shift,invert,crop:8 --device cpu --out runs --json"
    )
    code, out, error = run(line)
    assert code == 0, error
    results = json.loads(out)
    assert (results["metric"], results["data"]["test"]) == ("dice", 4)
    for one in results["runs"]:
        assert one["config"]["loss"] == "generalized_dice"
        assert 0 < one["history"][0]["train_loss"] < 1
        assert one["confusion"] == {}


def test_a_table_of_tags_with_the_focal_loss_and_drawn_epochs(run, tmp_path: Path) -> None:
    rows = ["image,tags"]
    for i in range(60):
        write(tmp_path / "photos" / f"p{i}.png", np.full((12, 12, 3), 4 * i, np.uint8))
        rows.append(f"p{i},{' '.join(['bright'] * (i >= 30) + ['even'] * (i % 2 == 0))}")
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    line = (
        "train --data 'table:tags.csv?images=photos' --model tiny --init learned --epochs 2 --batch-size 8 "
        "--loss focal --epoch-size 24 --device cpu --out runs"
    )
    code, out, error = run(line)
    assert code == 0, error
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    tested, confusion = results["runs"][0]["test"], results["runs"][0]["confusion"]
    assert results["data"]["labels"] == [*confusion] == ["bright", "even"]
    assert all(sum(map(sum, matrix)) == 6 for matrix in confusion.values())
    assert f"F2: learned {tested['f2']:.4f}" in out
    (tn, fp), (fn, tp) = confusion["bright"]
    assert f"({tp} {fp} {fn} {tn})" in out


def test_what_does_not_fit_is_told_in_one_line(run) -> None:
    for options, message in (
        ("--loss focal", "explainfix: loss focal is for binary and multilabel data, got multiclass: take auto"),
        ("--augment crop:40", "explainfix: augment crop:40 is larger than the images, which are 28x28"),
        ("--augment blur", "explainfix: augment must be of flip, noise, shift, invert and crop:PIXELS, each once, got"),
    ):
        code, out, error = run(f"train --data mnist5k --model tiny --device cpu --out o {options}")
        assert (code, out) == (2, "")
        assert message in error


def test_models_are_listed(run) -> None:
    code, out, error = run("train --model list")
    assert (code, error) == (0, "")
    assert "bottleneck, basicblock" in out
    assert "timm:resnet18" in out
