"""SyncBatchNorm in two processes computes what BatchNorm computes from the batches of both."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from support.training_step import check_same, image, prepared, step
from support.two_processes import run_two
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.memory import memory_report, save_memory

KINDS = {
    "plain": {},
    "no weight": {"affine": False},
    "cumulative": {"momentum": None},
    "untracked": {"track_running_stats": False},
    "eval": {},
}
PART = (slice(0, 3), slice(3, 8))  # of the batch, for each process


def _net(kind: str) -> nn.Module:
    """Has BatchNorms of images and of rows."""
    torch.manual_seed(0)
    options = KINDS[kind]
    blocks = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, **options), nn.ReLU(), nn.Conv2d(8, 8, 1))
    stem = (efx.FixedConv2d(3, 8, 3, 2, 1, seed=0), nn.BatchNorm2d(8, **options), nn.SiLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8, **options), nn.Linear(8, 4))
    model = prepared(nn.Sequential(*stem, blocks, *head))
    return model.eval() if kind == "eval" else model


def _total(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sin().sum()


def _in_one_of_two(rank: int, folder: Path) -> None:
    for kind in KINDS:
        for mode, checkpoint in (("exact", "off"), ("recompute", "off"), ("recompute", "blocks")):
            plain = _net(kind)
            want = step(plain, image(8), _total)
            ours = nn.SyncBatchNorm.convert_sync_batchnorm(_net(kind))
            save_memory(ours, mode, checkpoint)
            got = step(ours, image(8)[PART[rank]], _total)
            for name in [*dict(ours.named_parameters()), "loss"]:
                dist.all_reduce(got[name])
            want["x"] = want["x"][PART[rank]]
            check_same(want, got, 1e-12)


def test_two_processes(tmp_path: Path) -> None:
    run_two(_in_one_of_two, tmp_path)


def test_one_process_keeps_less() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(_net("plain"))
    ours = copy.deepcopy(model)
    save_memory(ours, "exact")
    check_same(step(model, image(8), _total), step(ours, image(8), _total))
    kept = [memory_report(net, image(8)).ours.kept_bytes for net in (ours, model)]
    assert kept[0] < 0.8 * kept[1]
