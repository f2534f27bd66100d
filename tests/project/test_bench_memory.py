"""bench_memory.py builds every variant that it measures, and its table shows what failed."""

import sys

import pytest
import torch
from support.paths import BENCH

pytest.importorskip("torchvision")
pytest.importorskip("rich", reason="bench/ needs the extra `demo`")
sys.path.insert(0, str(BENCH))
import bench_memory


@pytest.mark.parametrize("variant", [v for v in bench_memory.VARIANTS if v != "compile"])
def test_a_variant_takes_a_step(variant: str) -> None:
    model = bench_memory.build("resnet18", variant)
    bench_memory.step_loss(model, torch.zeros(2, 3, 32, 32)).backward()


def test_a_row_that_failed_is_a_dash() -> None:
    rows = [
        {"model": "unet", "variant": "frozen", "failed": "no"},
        {"model": "resnet18", "variant": "frozen", "kept": 2**20, "peak": 2**21},
    ]
    assert "| frozen | - | 1.00 (1 / 2) |" in bench_memory.table(rows, [])
