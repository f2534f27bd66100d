"""Checkpoints: files that are whole or not there, random states, and which network a state_dict fits."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')

from support.dropout_run import CPU, DropoutNet, assert_same

from explainfix_ext import convert
from explainfix_ext._support.files import write_atomic
from explainfix_ext.training.checkpoint import load_checkpoint, load_weights, rng_state, set_rng_state
from explainfix_ext.training.runs import train_networks


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new, but not who")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old"


def test_random_states_return():
    state = rng_state(CPU)
    draws = [(torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) for _ in "ab"]
    set_rng_state(state, CPU)
    again = [(torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) for _ in "ab"]
    assert draws == again


def test_model_file_loads_into_a_fresh_network(tmp_path, config):
    config = replace(config, init="dct2", epochs=1)
    train_networks([config], tmp_path, device="cpu")
    for name in ("model.pt", "checkpoint.pt"):
        model = DropoutNet(1, 3)
        convert(model, "dct2", seed=99)
        load_weights(model, tmp_path / "dct2" / name)
        assert_same(dict(model.state_dict()), load_checkpoint(tmp_path / "dct2" / "model.pt"))


def test_plain_and_converted_checkpoints_say_convert_first(tmp_path):
    plain, fixed = DropoutNet(1, 3), DropoutNet(1, 3)
    convert(fixed, "dct2")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    torch.save(fixed.state_dict(), tmp_path / "fixed.pt")
    with pytest.raises(ValueError, match=r"fixed.pt is of a converted model and this one is plain .*convert first"):
        load_weights(plain, tmp_path / "fixed.pt")
    with pytest.raises(ValueError, match=r"plain.pt is of a plain model and this one is converted .*convert first"):
        load_weights(fixed, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"plain.pt does not fit the model.*size mismatch"):
        load_weights(DropoutNet(1, 4), tmp_path / "plain.pt")
