"""Counts what a training step of learned networks keeps, with torch's layers and under save_memory.

docs/memory.md has the table.

    python bench/memory_savers.py > bench/results/memory_savers_cpu.json
"""

from __future__ import annotations

import json
from collections.abc import Callable

import timm
import torch
import torchvision
from torch import Tensor, nn

import explainfix_ext as efx


def chain(make: Callable[[int, int], nn.Module], norm: Callable[[int], nn.Module], act: nn.Module) -> nn.Module:
    layers = [m for _ in range(4) for m in (make(32, 32), norm(32), act)]
    return nn.Sequential(make(3, 32), *layers, make(32, 4))


def conv(kind: type[nn.Module]) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: kind(inputs, outputs, 3, padding=1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear, BatchNorm1d, ReLU": (lambda: chain(nn.Linear, nn.BatchNorm1d, nn.ReLU()), (4096, 3)),
    "Conv1d, BatchNorm1d, ReLU": (lambda: chain(conv(nn.Conv1d), nn.BatchNorm1d, nn.ReLU()), (8, 3, 512)),
    "Conv1d, BatchNorm1d, SiLU": (lambda: chain(conv(nn.Conv1d), nn.BatchNorm1d, nn.SiLU()), (8, 3, 512)),
    "Conv2d, SyncBatchNorm, ReLU": (lambda: chain(conv(nn.Conv2d), nn.SyncBatchNorm, nn.ReLU()), (4, 3, 32, 32)),
    "Conv3d, BatchNorm3d, ReLU": (lambda: chain(conv(nn.Conv3d), nn.BatchNorm3d, nn.ReLU()), (2, 3, 8, 16, 16)),
    "torchvision's r3d_18": (torchvision.models.video.r3d_18, (1, 3, 8, 56, 56)),
    "timm's convnext_atto": (lambda: timm.create_model("convnext_atto"), (2, 3, 96, 96)),
    "timm's vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224"), (2, 3, 224, 224)),
    "timm's ghostnetv2_100": (lambda: timm.create_model("ghostnetv2_100"), (2, 3, 64, 64)),
}


def kept(model: nn.Module, x: Tensor, mode: str) -> int:
    efx.save_memory(model, mode)
    return efx.memory_report(model, x).ours.kept_bytes


if __name__ == "__main__":
    rows = []
    for name, (make, shape) in NETWORKS.items():
        torch.manual_seed(0)
        model, x = make().train(), torch.randn(shape)
        rows.append({"network": name, "shape": shape, **{m: kept(model, x, m) for m in ("off", "exact", "recompute")}})
    versions = {"torch": torch.__version__, "timm": timm.__version__, "torchvision": torchvision.__version__}
    print(json.dumps({"kept_bytes": rows, **versions}, indent=1))
