"""state_dicts of other programs: found in their files, brought to the model's names, or refused on one screen."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support.limited_memory import limited_memory
from torch import Tensor, nn

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')

import explainfix_ext as efx
from explainfix_ext.training.checkpoint import load_state, load_weights, read_weights
from explainfix_ext.training.state_names import with_names_of


def network(seed: int, classes: int = 3, fixed: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4, classes)
    )
    if fixed:
        efx.convert(model, "dct2", seed=seed)
    return model


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


FILES = {
    "DDP": lambda s: prefixed("module.", s),
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "a part compiled": lambda s: {n.replace("0.", "0._orig_mod.", 1) if n[0] == "0" else n: v for n, v in s.items()},
    "DDP of compiled": lambda s: {"model": prefixed("module._orig_mod.", s)},
    "compiled DDP": lambda s: {"model_state_dict": prefixed("_orig_mod.module.", s), "epoch": 3},
    "timm": lambda s: {"state_dict": s, "state_dict_ema": {n: v * 0 for n, v in s.items()}, "arch": "resnet18"},
    "timm, averaged alone": lambda s: {"state_dict_ema": s, "epoch": 3},
    "torchvision": lambda s: {"model": s, "model_ema": {"n_averaged": torch.tensor(3)}, "optimizer": {}},
    "averaged": lambda s: prefixed("module.", s) | {"n_averaged": torch.tensor(3)},
    "Lightning": lambda s: {"state_dict": prefixed("model.", s) | {"loss.weight": torch.ones(3)}, "global_step": 7},
    "Lightning of compiled": lambda s: {"state_dict": prefixed("net._orig_mod.", s), "hyper_parameters": {"lr": 1}},
    "torch 0.4": lambda s: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")},
    "16-bit": lambda s: {n: v.half() for n, v in s.items()},
    "mean of two": lambda s: {n: (v.double() + v.double()) / 2 for n, v in s.items()},
}


@pytest.mark.parametrize("fixed", [False, True], ids=["plain", "converted"])
@pytest.mark.parametrize("kind", FILES)
def test_files_of_other_programs_load(kind: str, fixed: bool, tmp_path: Path) -> None:
    source, model = network(1, fixed=fixed), network(2, fixed=fixed)
    torch.save(FILES[kind](dict(source.state_dict())), tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    tolerance = {"rtol": 0, "atol": 1e-3 if kind == "16-bit" else 0}
    for name, value in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, **tolerance)
    torch.testing.assert_close(model[0].weight, source[0].weight, **tolerance)


def test_names_of_densenet_before_torchvision_0_3() -> None:
    new = {f"features.denseblock1.denselayer2.{k}.weight": torch.rand(3) for k in ("norm1", "norm2", "conv1", "conv2")}
    old = {name.replace("1.weight", ".1.weight").replace("2.weight", ".2.weight"): v for name, v in new.items()}
    assert old.keys().isdisjoint(new)
    assert with_names_of(new | {"fc.bias": torch.zeros(1)}, old | {"fc.bias": torch.zeros(1)}).keys() == {
        *new,
        "fc.bias",
    }
    assert with_names_of(old, old) is old


def test_a_model_with_such_names_keeps_them() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 3), "model": nn.Linear(3, 3)})
    load_state(model, model.state_dict(), "w.pth")
    with pytest.raises(ValueError, match="missing, 2 of 4: module.weight, module.bias"):
        load_state(model, prefixed("model.", nn.Linear(3, 3).state_dict()), "w.pth")


def long_names(count: int) -> dict[str, Tensor]:
    return {f"blocks.{i}.{'attention.' * 10}weight": torch.zeros(3) for i in range(count)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (long_names(5000), r"another network; missing, 11 of 11: 0.weight, .*not the model's, 5000 of 5000: blocks.0"),
        (
            network(0, 5).state_dict(),
            r"the same names, in other sizes; size mismatch, 2 of 11: 4.weight \[5, 4\], expected",
        ),
        (prefixed("student.", network(0).state_dict()), "its names begin with 'student.': take that off"),
        (network(0)[:3].state_dict(), "another version of the network, or another one; missing, 2 of 11: 4.weight"),
        (
            network(0).state_dict() | {"5.bias": torch.zeros(1)},
            "a network of more parts; not the model's, 1 of 12: 5.bias",
        ),
        ({}, "another network; missing, 11 of 11"),
    ],
)
def test_what_does_not_fit_is_told_on_one_screen(state: dict, message: str) -> None:
    model = network(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="w.pth does not fit the model: " + message) as error:
        load_state(model, state, "w.pth")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_averages_of_other_filters_are_told() -> None:
    one, two = (network(seed, fixed=True).state_dict() for seed in (1, 2))
    mean = {name: (value.double() + two[name].double()) / 2 for name, value in one.items()}
    with pytest.raises(ValueError, match=r"1 layer cannot take it, the first: 0._extra_state: the .* were averaged"):
        load_state(network(3, fixed=True), mean, "w.pth")


# --- files that are no checkpoints ----------------------------------------------------------------------------------


def saved(what: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(what, file, **options)
    return file.getvalue()


def zipped(data: bytes, compression: int, fill: int = 0) -> bytes:
    """The parts of a file of torch.save, compressed; the largest with zeros after its end."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as parts, zipfile.ZipFile(out, "w", compression) as new:
        for part in parts.infolist():
            new.writestr(part.filename, parts.read(part) + bytes(fill if part.filename.endswith("data/0") else 0))
    return out.getvalue()


GOOD = saved({"a": torch.ones(30), "b": torch.zeros(2, 3)})
OLD = saved({"a": torch.ones(30), "b": torch.zeros(2, 3)}, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped(GOOD, zipfile.ZIP_DEFLATED, 1 << 28), r"its parts have 2684\d* bytes, and it has \d{6}: torch.save"),
        (saved({"w": nn.Linear(2, 3)}), "holds Python objects, such as torch.nn.modules.linear.Linear, beside tensors"),
        (saved({"state_dict": {}, "a": argparse.Namespace()}), "holds Python objects, such as argparse.Namespace,"),
        (pickle.dumps({"a": argparse.Namespace()}), "it holds something beside tensors"),
        (b"", "damaged: EOFError"),
        (b"hello", "damaged: KeyError"),
        (OLD.replace(b"K\x1e", b"\x8a\x06\x00\x00\x00\x00\x00\x10"), "cannot be read"),
        (saved({"a": 1.0}), "is no state_dict: expected names and their tensors"),
        (saved({3: torch.ones(3)}), "is no state_dict: expected names and their tensors"),
    ],
)
def test_files_that_hold_no_state_dict_are_told(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(data)
    with limited_memory(1 << 28), pytest.raises(ValueError, match=message) as error:
        read_weights(tmp_path / "w.pth")
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
    assert len(str(error.value)) < 600


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of torch.save, of either kind, or of safetensors, with other bytes, then an end that is missing."""
    kind = draw(st.sampled_from(["new", "old", "safetensors"]))
    safetensors = pytest.importorskip("safetensors.torch")
    states = {"new": GOOD, "old": OLD, "safetensors": safetensors.save({"a": torch.ones(30)})}
    data = bytearray(states[kind])
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    end = draw(st.sampled_from([len(data), len(data), draw(st.integers(0, len(data)))]))
    return "w.safetensors" if kind == "safetensors" else "w.pth", bytes(data[:end])


def check_weights_or_one_line(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    said = "weights"
    try:
        assert all(isinstance(value, Tensor) for value in read_weights(folder / name).values())
    except ValueError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    assert len(said) < 600


quick = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@seed(0)
@quick
@given(file=files())
def test_any_file_gives_weights_or_one_line(tmp_path: Path, file: tuple[str, bytes]) -> None:
    with limited_memory():
        check_weights_or_one_line(tmp_path, *file)


@pytest.mark.slow
@seed(1)
@settings(quick, max_examples=2000)
@given(file=files())
def test_any_of_many_files_gives_weights_or_one_line(tmp_path: Path, file: tuple[str, bytes]) -> None:
    with limited_memory():
        check_weights_or_one_line(tmp_path, *file)


def test_a_learned_1x1_in_one_of_the_two_only_is_named() -> None:
    ways = {True: nn.Sequential(nn.Conv2d(3, 8, 3)), False: nn.Sequential(nn.Conv2d(3, 8, 3))}
    for pointwise, model in ways.items():
        efx.convert(model, "dct2", pointwise=pointwise)
    for mine, theirs, words in ((True, False, "without pointwise=True and the model with"), (False, True, "with poin")):
        with pytest.raises(ValueError, match=f"w.pth does not fit the model: it was converted {words}"):
            load_state(ways[mine], ways[theirs].state_dict(), "w.pth")
