"""What two processes under DDP send in a step: learned and fixed filters, counted by bench/ddp_bytes.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from support.paths import BENCH
from torch import nn

torchvision = pytest.importorskip("torchvision", reason="torchvision (extra `models`) is not installed")
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")

SCRIPT = BENCH / "ddp_bytes.py"
MOST = {"resnet18": 0.10, "resnet50": 0.60}  # of the learned network's bytes


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """By network, of one run of the script, in two processes of its own."""
    out = tmp_path_factory.mktemp("ddp") / "ddp_bytes.json"
    what = ["--networks", *MOST, "--ways", "learned", "fixed"]
    subprocess.run([sys.executable, SCRIPT, *what, "--out", out], check=True, timeout=300)
    return {row["network"]: row for row in json.loads(out.read_text())["rows"]}


@pytest.mark.parametrize("network", MOST)
def test_fixed_filters_are_not_all_reduced(network: str, rows: dict[str, dict]) -> None:
    with torch.device("meta"):
        model = getattr(torchvision.models, network)()
    spatial = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size > (1, 1)]
    learned, filters = (sum(4 * p.numel() for p in each) for each in (model.parameters(), spatial))
    row = rows[network]
    assert row["learned"]["all_reduced"] == learned
    assert row["fixed"]["all_reduced"] == learned - filters
    assert row["fixed"]["all_reduced"] < MOST[network] * row["learned"]["all_reduced"]


@pytest.mark.parametrize("network", MOST)
def test_only_running_statistics_are_broadcast(network: str, rows: dict[str, dict]) -> None:
    with torch.device("meta"):
        statistics = sum(buffer.nbytes for buffer in getattr(torchvision.models, network)().buffers())
    assert {row["broadcast"] for way, row in rows[network].items() if way != "network"} == {statistics}
