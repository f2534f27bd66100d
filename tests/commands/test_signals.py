"""The commands on signals, end to end: train, explain, prune, on a data set of the UCR archive's layout."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("torchmetrics", reason='needs the extra "demo"')

from support.page import check_structure


def waves(folder: Path) -> str:
    """Writes series of 20 samples, whose class is the period of a wave in noise."""
    rng, lines = random.Random(0), {}
    for part, count in (("TRAIN", 40), ("TEST", 20)):
        rows = ["@data"]
        for n in range(count):
            period = 4 + 5 * (n % 2)
            wave = [math.sin(2 * math.pi * (t + rng.random() / 2) / period) for t in range(20)]
            rows.append(f"{','.join(f'{x:.4f}' for x in wave)}:{'slow' if n % 2 else 'fast'}")
        lines[part] = "\n".join(rows)
        (folder / f"Waves_{part}.ts").write_text(lines[part])
    return f"ucr:{folder}/Waves"


def test_train_explain_and_prune_signals(run, tmp_path) -> None:
    data, out = waves(tmp_path), tmp_path / "runs"
    how = "--model inceptiontime@0.125 --epochs 6 --batch-size 12 --lr 0.01 --device cpu --json"
    code, text, error = run(f'train --data "{data}" --init learned,auto {how} --out "{out}"')
    assert code == 0, error
    learned, fixed = json.loads(text)["runs"]
    assert learned["test"]["accuracy"] == fixed["test"]["accuracy"] == 1
    assert (learned["fixed_layers"], fixed["fixed_layers"]) == (0, 18)
    assert fixed["learned_parameters"] < 0.5 * learned["learned_parameters"]
    checkpoint = out / "auto" / "checkpoint.pt"

    page = tmp_path / "waves.html"
    code, text, error = run(f'explain "{checkpoint}" --batches 2 --device cpu --html "{page}" --json')
    assert code == 0, error
    found = json.loads(text)
    of_images = {"class purity", "groups", "class directions"}  # they are for channels of images
    assert found["missing"].keys() == of_images
    assert all("must give (N, K) or (N, K, H, W), got" in reason for reason in found["missing"].values())
    assert found["test"]["accuracy"] == 1
    check_structure(page.read_text())

    pruned = tmp_path / "pruned"
    code, text, error = run(f'prune "{checkpoint}" --amount 0.3 --epochs 1 --device cpu --out "{pruned}" --json')
    assert code == 0, error
    assert json.loads(text)["report"]["verify_error"] < 1e-5
    assert (pruned / "model.pt").is_file()


def test_networks_of_images_say_that_they_cannot_take_signals(run, tmp_path) -> None:
    code, _, error = run(f'train --data "{waves(tmp_path)}" --model bottleneck --init learned --out "{tmp_path}/runs"')
    assert code != 0
    assert "model 'bottleneck' cannot take images of 1x20" in error
