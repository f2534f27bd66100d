"""A training configuration: values out of range are told."""

from __future__ import annotations

import pytest

from explainfix_ext.training.config import TrainConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or positive"),
        ({"seed": -1}, "seed must be from 0"),
        ({"amp": "fp8"}, "amp must be one of off, bf16, fp16, got 'fp8'"),
        ({"init": "dct3"}, "unknown init 'dct3'; nearest: dct2"),
        ({"init": "dct2@0"}, r"density in init dct2@DENSITY must be in \(0, 1\], got 0"),
        ({"init": "dct2@x"}, "init must be NAME or NAME@DENSITY such as dct2@0.1, got 'dct2@x'"),
        ({"init": "learned@0.1"}, "learned has no density"),
        ({"epochs": "3"}, "epochs must be of type int, got '3'"),
        ({"epochs": True}, "epochs must be of type int, got True"),
        ({"epoch_size": 0}, "epoch_size must be at least 1, got 0"),
        ({"loss": "mse"}, "loss must be one of auto, focal, dice, generalized_dice, got 'mse'"),
        ({"augment": "flip,rotate"}, "augment must be of flip, noise, shift, invert and crop:PIXELS, each once"),
        ({"limit": 2.0}, "limit must be of type int or None, got 2.0"),
        ({"lr": None}, "lr must be of type float, got None"),
        ({"pointwise": 1}, "pointwise must be of type bool, got 1"),
        ({"data": 3}, "data must be of type str, got 3"),
        ({"data": "folder:\udcff"}, "data must be text that can be written as UTF-8, got 'folder:"),
    ],
)
def test_bad_configurations_are_told(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_a_steered_init_without_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match=r"init guided_steer needs steering, a file of Steering\.save"):
        TrainConfig(init="guided_steer")
    TrainConfig(init="dct2", steering="not read")


def test_saved_configurations_are_checked() -> None:
    assert TrainConfig.from_saved({"epochs": 3, "lr": 1}, "x.pt") == TrainConfig(epochs=3, lr=1)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for saved, message in (
        ([1, 2], "x.pt is damaged: its configuration must be a dict, got a list"),
        (None, "x.pt is damaged: its configuration must be a dict, got a NoneType"),
        ({1: 2}, "x.pt is of another version of explainfix_ext: its configuration has 1"),
        ({"epochs": []}, r"x.pt has a wrong configuration: epochs must be of type int, got \[\]"),
        ({"epochs": deep}, "x.pt has a wrong configuration: epochs must be of type int"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            TrainConfig.from_saved(saved, "x.pt")
        assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match="x.pt is damaged: its configuration must be a dict, got a list"):
        TrainConfig().check_same([], "x.pt")
