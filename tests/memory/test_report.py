"""memory_report: its counts, its tables and its picture."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

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
