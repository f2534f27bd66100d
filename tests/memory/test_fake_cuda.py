"""What save_memory does on a GPU, by FakeTensors: the bytes of training steps, and that each module runs."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from support.bench_networks import MEMORY_MODELS
from support.fake_cuda import CUDA, autocast, on_fake_cuda
from support.paths import BENCH
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.commands.benchmarks.models import freeze_spatial
from explainfix_ext.memory.count import MIB, Usage, count_step
from explainfix_ext.training.models import logits_of

pytestmark = pytest.mark.filterwarnings("ignore:.* convolutions are now fixed")

# (kept, peak) of a step in MiB: batch 64 at 224 pixels, bfloat16 autocast, channels_last.
RESNET18 = {
    "learned": (748, 763), "frozen": (730, 737), "exact": (334, 345), "recompute": (128, 196), "int8": (93, 196),
}  # fmt: skip
# The same, and by memory_allocated on an H200 (torch 2.11; the fixed layers those of "ghaar4_s1").
RESNET50 = {
    "learned": (2720, 2748, 2739, 2767), "frozen": (2701, 2729, 2721, 2749), "off": (2680, 2708, 2695, 2723),
    "exact": (2125, 2153, 2141, 2168), "recompute": (957, 1000, 964, 1006), "int8": (648, 691, 654, 695),
}  # fmt: skip


def network(name: str, variant: str) -> nn.Module:
    """Builds a network as bench/bench_memory.py does; "off": fixed, without save_memory."""
    model = MEMORY_MODELS[name]().train()
    if variant != "learned":
        freeze_spatial(model)
        if variant != "frozen":
            efx.convert(model, "dct2", seed=0, memory=variant)
    return model


def step(model: nn.Module, batch: int, layout: torch.memory_format, mixed: bool) -> Usage:
    with on_fake_cuda(model):
        x = torch.empty(batch, 3, 224, 224, device=CUDA, memory_format=layout)
        digits = torch.empty(batch, device=CUDA, dtype=torch.long)

        def loss(model: nn.Module) -> Tensor:
            with autocast() if mixed else nullcontext():
                logits = logits_of(model(x))
                if mixed and logits.ndim == 2:
                    return F.cross_entropy(logits, digits)
                return logits.float().square().mean()

        return count_step(model, loss)


def mixed_step(name: str, variant: str) -> tuple[float, float]:
    usage = step(network(name, variant), 64, torch.channels_last, mixed=True)
    return usage.kept_bytes / MIB, usage.peak / MIB


@pytest.mark.parametrize("variant", RESNET18)
def test_bytes_of_a_mixed_precision_step(variant: str) -> None:
    assert mixed_step("resnet18", variant) == pytest.approx(RESNET18[variant], abs=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("variant", RESNET50)
def test_bytes_are_those_that_a_card_allocated(variant: str) -> None:
    counted = mixed_step("resnet50", variant)
    assert counted == pytest.approx(RESNET50[variant][:2], abs=0.6)
    assert counted == pytest.approx(RESNET50[variant][2:], rel=0.01)


@pytest.mark.parametrize("variant", ["frozen", "recompute"])
def test_float32_takes_the_bytes_that_it_takes_on_the_cpu(variant: str) -> None:
    rows = json.loads((BENCH / "results/memory_cpu.json").read_text())["rows"]
    (row,) = (r for r in rows if (r["model"], r["variant"]) == ("resnet18", variant))
    usage = step(network("resnet18", variant), row["batch"], torch.contiguous_format, mixed=False)
    assert (usage.kept_bytes, usage.peak) == pytest.approx((row["kept"], row["peak"]), rel=1e-3)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.LayerNorm(8)], ids=str)
def test_a_norm_in_mixed_precision_keeps_16_bits(norm: nn.Module) -> None:
    """Torch keeps the input in 32 bits there, and the next layer a copy of the output."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.Conv2d(8, 8, 1))
    efx.save_memory(model, "exact")
    with on_fake_cuda(model), autocast():
        x = torch.empty(2, 3, 8, 8, device=CUDA)
        usage = count_step(model, lambda model: model(x).sum())
    assert usage.kept["1", type(norm).__name__] + usage.kept.get(("2", "Conv2d"), 0) < 2 * 8 * 8 * 8 * 2 + 2**10


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_of_images(inplace: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(0.5, inplace))
    efx.save_memory(model, "exact")
    with on_fake_cuda(model):
        x = torch.empty(2, 3, 8, 8, device=CUDA)
        usage = count_step(model, lambda model: model(x).sum())
    assert usage.kept["1", "Dropout"] == 2 * 8 * 8 * 8 // 8  # a bit for each element


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMORY_MODELS)
def test_each_mode_keeps_less_than_the_one_before(name: str) -> None:
    kept = [
        step(network(name, variant), 2, torch.channels_last, mixed=True).kept_bytes
        for variant in ("frozen", "exact", "recompute", "int8")
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[1] < 0.9 * kept[0]
