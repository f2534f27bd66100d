"""Files, pickles, names and calls of before the code was sorted into rooms still work, and compute the same.

The files in tests/data/before_house were written by the package of that time; its README has the code. Outputs are
compared to 1e-6 of their norm, not bit by bit: another processor or another number of threads adds in another order,
and filters that are made again from their recipe differ by rounding where the math library does.

Only public names are used here, so that this test need not change when the inside does.
"""

from __future__ import annotations

import io
import json
import pickle
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import explainfix_ext as efx

BEFORE = Path(__file__).resolve().parents[1] / "data" / "before_house"
WAYS: dict[str, dict[str, Any]] = {
    "dct2": {"init": "dct2"},
    "density": {"init": "dct2", "density": 0.4},
    "ghaar4_s1": {"init": "ghaar4_s1"},
    "shared_basis": {"init": "ghaar4_s1", "shared_basis": 3},
    "unchanged": {"init": "unchanged"},
    "energy": {"init": "unchanged", "energy": 0.6},
    "guided_steer": {"init": "guided_steer"},
    "learn_coeff": {"init": "ghaar4_s1", "learn_coeff": True},
    "pointwise": {"init": "dct2", "pointwise": True},
}
EXPLAIN = "--batches 1 --device cpu --json"
PLANS: dict[str, dict[str, Any]] = {"plan": {}, "plan_filters": {"include": ["0", "5"]}}

# Saved file -> the library without which it cannot be loaded, and whether a gradient was saved with it.
WHOLE = {
    "whole": ("torch", True),
    "whole_same": ("timm", False),
    "whole_memory": ("torch", True),
    "whole_blocks": ("timm", True),
    "traced": ("torch", False),
    "flat": ("torch", False),
}


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with np.load(BEFORE / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def check_same(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    assert (got - wanted).norm() <= 1e-6 * wanted.norm()


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


def network_to_prune() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def convert_quietly(model: nn.Module, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of little that is learned: the networks are small
        efx.convert(model, seed=99, **options)  # another seed: the filters must come from the file


@torch.no_grad()
def output_of(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_state_dict(way, expected):
    safetensors = pytest.importorskip("safetensors.torch", reason='needs the extra "demo"')
    model, options = network(), WAYS[way]
    if way == "guided_steer":
        options = options | {"steering": efx.Steering.load(BEFORE / "steering.safetensors")}
    convert_quietly(model, **options)
    states = safetensors.load_file(BEFORE / "states.safetensors")
    model.load_state_dict({key.split("/")[1]: t for key, t in states.items() if key.startswith(f"{way}/")})
    check_same(output_of(model, expected["x"]), expected[f"states.{way}.y"])
    check_same(output_of(efx.revert(model), expected["x"]), expected[f"states.{way}.y"])


@pytest.mark.parametrize("way", ["dct2", "unchanged"])
def test_state_dict_of_torch_save(way, expected):
    model = network()
    convert_quietly(model, **WAYS[way])
    model.load_state_dict(torch.load(BEFORE / "states.pt", weights_only=True)[way])
    check_same(output_of(model, expected["x"]), expected[f"states.{way}.y"])


def test_a_state_dict_of_now_has_the_keys_and_bytes_of_before():
    """So that what is saved now loads into the package of before, too."""
    model = network()
    convert_quietly(model, init="dct2")
    saved = torch.load(BEFORE / "states.pt", weights_only=True)["dct2"]
    model.load_state_dict(saved)
    now = model.state_dict()
    assert list(now) == list(saved)
    for key, value in saved.items():
        if key.endswith("_extra_state"):  # b"EFXB", 4 bytes of length, a JSON header
            headers = [json.loads(bytes(state[8:].tolist())) for state in (now[key], value)]
            assert headers[0]["recipe"] == headers[1]["recipe"]
            assert headers[0]["fingerprint"].keys() == headers[1]["fingerprint"].keys()
        else:
            assert torch.equal(now[key], value)


@pytest.mark.parametrize("name", PLANS)
def test_pruning_plan(name, expected):
    model = network_to_prune()
    convert_quietly(model, init="dct2", **PLANS[name])
    efx.apply_plan(model, json.loads((BEFORE / f"{name}.json").read_text()))
    model.load_state_dict(torch.load(BEFORE / "pruned.pt", weights_only=True)[name])
    check_same(output_of(model, expected["x"]), expected[f"{name}.y"])


def test_steering_and_spectra():
    pytest.importorskip("safetensors", reason='needs the extra "demo"')
    steering = efx.Steering.load(BEFORE / "steering.safetensors")
    assert (steering.method, list(steering.layers)) == ("guided", ["0"])
    text = (BEFORE / "spectra.json").read_text()
    assert json.loads(efx.Spectra.from_json(text).to_json()) == json.loads(text)


# --- whole models and pickles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_whole_model(name, expected):
    library, trained = WHOLE[name]
    pytest.importorskip(library)
    model = torch.load(BEFORE / f"{name}.pt", weights_only=False)
    if trained:
        x = expected["x"].clone().requires_grad_()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        model.train()(x).square().sum().backward()
        assert x.grad is not None
        check_same(x.grad, expected[f"{name}.grad"])
        model.load_state_dict(state)  # BatchNorm's running statistics have moved
    check_same(output_of(model, expected["x"]), expected[f"{name}.y"])
    again = io.BytesIO()
    torch.save(model, again)
    again.seek(0)
    check_same(output_of(torch.load(again, weights_only=False), expected["x"]), expected[f"{name}.y"])


@pytest.mark.parametrize("name", ["whole", "whole_same", "whole_memory"])
def test_whole_model_can_still_be_changed(name, expected):
    """Every method that needs what a layer holds: moved, copied, given another bank, made plain."""
    pytest.importorskip(WHOLE[name][0])
    model = torch.load(BEFORE / f"{name}.pt", weights_only=False)
    efx.save_memory(model, "off")
    layers = [m for m in model.modules() if isinstance(m, efx.FixedConv2d)]
    for layer in layers:
        layer.bank = layer.bank
    check_same(output_of(model.double().float(), expected["x"]), expected[f"{name}.y"])
    efx.save_memory(model, "recompute")
    efx.save_memory(model, "off")
    efx.revert(model)
    assert not any(isinstance(m, efx.FixedConv2d) for m in model.modules())
    check_same(output_of(model, expected["x"]), expected[f"{name}.y"])


def test_exported_program(expected):
    """Its operator, with the filters packed as they were, is in the file."""
    program = torch.export.load(BEFORE / "exported.pt2").module()
    with torch.no_grad():
        check_same(program(expected["x"]), expected["traced.y"])


def test_pickled_objects(expected):
    pytest.importorskip("timm")  # with the libraries that have blocks, as it was made
    objects = pickle.loads((BEFORE / "objects.pkl").read_bytes())
    for name in ("bank", "bank_coeff"):
        check_same(objects[name].weight(), expected[f"{name}.weight"])
    assert objects["bank"].recipe == efx.Recipe("dct2", seed=7, density=0.5)
    assert type(objects["spectra"]) is efx.Spectra
    assert [type(value).__name__ for value in objects.values() if str(value)] == [
        "FilterBank",
        "FilterBank",
        "ConversionReport",
        "Summary",
        "MemoryReport",
        "MemoryChanges",
        "PruneReport",
        "Spectra",
        "Steering",
        "Status",
    ]


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run `explainfix` with a line of arguments in a folder that has the images -> its stdout."""
    for library in ("typer", "rich", "timm", "torchmetrics"):
        pytest.importorskip(library, reason='needs the extra "demo"')
    from explainfix_ext import cli

    write_images(tmp_path / "images.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own

    def call(line: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            cli.main(shlex.split(line))
        out, err = capsys.readouterr()
        assert not exit_.value.code, err
        return out

    return call


def write_images(path: Path) -> None:
    """A small data set in MedMNIST's layout: a class is the period of stripes."""
    rng, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 60), ("val", 15), ("test", 15)):
        label = np.arange(n) % 3
        wave = np.sin(np.arange(12) * np.pi / (1 + label[:, None]))[:, None, :]
        pixels = 128 + 60 * wave + rng.normal(0, 30, (n, 12, 12))
        arrays |= {f"{part}_images": pixels.clip(0, 255).astype(np.uint8), f"{part}_labels": label[:, None]}
    np.savez(path, **arrays)


def test_a_training_run_goes_on(run, tmp_path):
    """It was done: so it is not trained again, but tested, and the score is that of before."""
    (tmp_path / "run" / "dct2").mkdir(parents=True)
    shutil.copy(BEFORE / "checkpoint.pt", tmp_path / "run" / "dct2")
    options = "--data images.npz --model basicblock@0.05 --init dct2 --epochs 1 --batch-size 16 --out run --device cpu"
    run(f"train {options} --resume")
    before, now = (json.loads(file.read_text()) for file in (BEFORE / "results.json", tmp_path / "run/results.json"))
    assert_scores(now["runs"][0]["test"], before["runs"][0]["test"])
    assert now["runs"][0]["history"] == before["runs"][0]["history"]
    for name in ("learned_parameters", "kept_bytes", "fixed_layers"):
        assert now["runs"][0][name] == before["runs"][0][name]
    assert now.keys() == before.keys()
    assert before["runs"][0].keys() <= now["runs"][0].keys()


def assert_scores(now: dict[str, float], before: dict[str, float]) -> None:
    """There may be more scores than before."""
    assert {name: now[name] for name in before} == pytest.approx(before, rel=1e-5)


def test_a_checkpoint_is_pruned_and_explained(run, tmp_path):
    shutil.copy(BEFORE / "checkpoint.pt", tmp_path)
    run("prune checkpoint.pt --amount 0.5 --epochs 0 --batches 1 --out pruned --device cpu")
    before, now = (json.loads(file.read_text()) for file in (BEFORE / "results.json", tmp_path / "pruned/results.json"))
    assert now["test"]["unpruned"] == pytest.approx(before["runs"][0]["test"], rel=1e-5)
    before, now = json.loads((BEFORE / "explain.json").read_text()), json.loads(run("explain checkpoint.pt " + EXPLAIN))
    assert [key for key in now if key in before["keys"]] == before["keys"]  # there may be more
    assert_scores(now["test"], before["test"])
    for name in ("learned_parameters", "stored_numbers"):
        assert now[name] == before[name]
    for layer, as_before in zip(now["summary"], before["summary"], strict=True):
        other_kernel = layer["kernel"] != as_before["kernel"]  # it is the machine's, and with it what it does and packs
        machines = ("kernel", "multiply_adds", "stored_bytes") if other_kernel else ("stored_bytes",)
        assert other_kernel or layer["stored_bytes"] <= as_before["stored_bytes"]  # AVX2 packs fewer, larger blocks
        assert {k: v for k, v in layer.items() if k not in machines} == {
            k: v for k, v in as_before.items() if k not in machines
        }
