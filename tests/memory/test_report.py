"""memory_report: its counts, its tables and its picture."""

from __future__ import annotations

import copy
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training_step import Block, image, prepared
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import memory_report, save_memory


@pytest.fixture
def reported() -> nn.Module:
    model = prepared(Block(), torch.float32)
    save_memory(model, "recompute")
    return model


def test_report_counts_what_is_kept(reported: nn.Module, tmp_path: Path) -> None:
    x = image(4, torch.float32, 64)
    state = copy.deepcopy(reported.state_dict())
    report = memory_report(reported, x)
    for before, after in itertools.zip_longest(state.values(), reported.state_dict().values()):
        assert torch.equal(before, after)
    assert all(p.grad is None for p in reported.parameters())
    assert report.ours.kept_bytes < 0.5 * report.frozen.kept_bytes
    assert report.ours.kept_bytes < report.ours.peak < report.frozen.peak
    assert max(report.ours.timeline) <= report.ours.peak
    assert report.by(lambda name, kind: kind)[1]["BatchNorm2d"] >= 4 * 8 * 64 * 64 * 4  # the stem's alone
    text = str(report)
    assert "stem.1" in text
    assert "peak over frozen torch: 0." in text
    report.plot(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 10_000


def test_report_equals_what_torch_says_it_keeps(reported: nn.Module) -> None:
    """Another way to count: the saved tensors of a fresh step, by address, without those that exist anyway."""
    plain, x = copy.deepcopy(reported), image(2, torch.float32, 32)
    save_memory(plain, "off")
    efx.revert(plain)
    own = {t.untyped_storage().data_ptr() for t in (*plain.parameters(), *plain.buffers(), x)}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = plain(x).float().square().mean()
    assert sum(kept.values()) == memory_report(reported, x).frozen.kept_bytes
    del y


def test_report_leaves_everything_as_it_was() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x += random.random() + np.random.rand() + torch.rand(())
            self.kept = [self.conv(x)]  # with its graph: torch does not copy it
            return self.kept[0]

    model, x = Side(), image(dtype=torch.float32)
    y = model(x.clone())
    graph = x.clone().requires_grad_() * 1
    before, x = x.clone(), x.requires_grad_()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    memory_report(model, x.detach())
    memory_report(model, (x,))
    memory_report(model, graph)
    graph.sum().backward()  # is still there
    assert model.kept[0] is y
    assert x.grad is None
    assert torch.equal(x, before)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_learned_1x1_is_in_both_counts() -> None:
    model = nn.Sequential(efx.FixedConv2d(8, 8, 3, seed=0, pointwise=True), nn.ReLU())
    x = torch.randn(2, 8, 16, 16)
    report = memory_report(model, x)
    assert report.ours.kept_bytes == report.frozen.kept_bytes >= 2 * x[:, :, 1:-1, 1:-1].nbytes  # of the 1x1, of ReLU
