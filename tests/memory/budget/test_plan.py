"""memory_plan: its bytes are those of a real step, and its largest batch is the largest."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from support.bench_networks import MEMORY_MODELS
from support.paths import BENCH
from support.training_step import Block, prepared
from torch import nn

import explainfix_ext as efx
from explainfix_ext.memory.budget.arithmetic import largest_batch, parse_bytes
from explainfix_ext.memory.budget.plan import Configuration
from explainfix_ext.memory.count import Usage, count_step
from explainfix_ext.memory.report import mean_square

SHAPE = (3, 32, 32)
MODES = ["off", "exact", "recompute", "int8"]
BLOCKS = "recompute, blocks"  # of models that have blocks


def real_step(model: nn.Module, way: Configuration, batch: int, shape: tuple[int, int, int] = SHAPE) -> Usage:
    copied, x = copy.deepcopy(model), torch.randn(batch, *shape)
    way.apply(copied, shape[0])
    return count_step(copied, lambda net: mean_square(net(x)))


def check_same_as_real(model: nn.Module, shape: tuple[int, int, int] = SHAPE, blocks: bool = True) -> None:
    state = copy.deepcopy(model.state_dict())
    plan = efx.memory_plan(model, shape, batch=2, budget=1)
    assert [str(row.configuration) for row in plan.rows] == [*MODES, *[BLOCKS] * blocks]
    for row in plan.rows:
        usage = real_step(model, row.configuration, 2, shape)
        assert (row.kept, row.peak) == (usage.kept_bytes, usage.peak)
        assert row.largest_batch == 0
    for before, after in zip(state.values(), model.state_dict().values(), strict=True):
        assert type(after) is type(before)
        assert torch.equal(before, after)


def test_bytes_are_those_of_a_real_step() -> None:
    check_same_as_real(prepared(Block(), torch.float32), blocks=False)


def test_bytes_of_checkpointed_blocks_are_those_of_a_real_step() -> None:
    stages = [nn.Sequential(nn.Conv2d(n, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 1)) for n in (3, 8, 8, 8)]
    model = nn.Sequential(*stages)
    check_same_as_real(model)
    kept = {str(row.configuration): row.kept for row in efx.memory_plan(model, SHAPE, 2, budget=1).rows}
    assert kept[BLOCKS] < kept["recompute"]


def test_images_larger_than_a_tile_have_rows_with_tiles() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))
    plan = efx.memory_plan(model, (3, 1800, 600), 1, budget="1GiB")
    rows = {str(row.configuration): row for row in plan.rows}
    assert list(rows) == [*MODES, BLOCKS, "recompute, tile 1024", "recompute, tile 512"]
    usage = real_step(model, rows["recompute, tile 512"].configuration, 1, (3, 1800, 600))
    assert rows["recompute, tile 512"].peak == pytest.approx(usage.peak, rel=0.01)
    assert rows["recompute, tile 512"].peak < 0.6 * rows["recompute"].peak
    assert not plan.not_streamed


def test_a_plan_says_why_there_are_no_tiles() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1))
    plan = efx.memory_plan(model, (3, 16, 600), 1)
    assert "1 (GroupNorm): its result depends on the whole image" in plan.not_streamed
    assert f"No tiles: {plan.not_streamed}." in str(plan)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnet_b0"])
@pytest.mark.parametrize("init", ["auto", "dct2", "learned"])
def test_bytes_of_networks_are_those_of_a_real_step(name: str, init: str) -> None:
    model = MEMORY_MODELS[name]()
    if init != "learned":
        efx.convert(model, init, seed=0)
    check_same_as_real(model, (3, 64, 64))


def test_total_has_weights_state_and_images() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    model[2].weight.requires_grad_(False)
    trained = 4 * (8 * 3 * 9 + 8 + 16 + 8)
    buffers = 4 * 16 + 8
    images = 4 * 2 * 3 * 32 * 32
    for optimizer, states in {"adamw": 2, "sgd": 1}.items():
        plan = efx.memory_plan(model, SHAPE, 2, optimizer=optimizer)
        assert plan.model_bytes == trained + buffers + 4 * 8 * 8 * 9
        assert plan.optimizer_bytes == states * trained
        for row in plan.rows:
            assert row.total == plan.model_bytes + plan.optimizer_bytes + images + row.peak


@pytest.mark.parametrize("batch", [1, 40])
def test_largest_batch_fits_and_one_more_does_not(batch: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2))
    plan = efx.memory_plan(model, SHAPE, batch, budget=4_000_000)
    for row in plan.rows:
        assert plan.fits(row) == (batch <= row.largest_batch)
        for n, fits in ((row.largest_batch, True), (row.largest_batch + 1, False)):
            again = efx.memory_plan(model, SHAPE, n, budget=4_000_000)
            (same,) = (r for r in again.rows if r.configuration == row.configuration)
            assert again.fits(same) == fits


@pytest.mark.parametrize("known", [1, 7, 100])
@pytest.mark.parametrize("budget", [5, 10, 19, 20, 60, 61, 3000])
def test_search_of_a_convex_total(known: int, budget: int) -> None:
    def total(n: int) -> int:
        return max(10 + 2 * n, 7 * n - 10, 30 * n - 500)

    best = max((n for n in range(1000) if total(n) <= budget), default=0)
    assert largest_batch(total, budget, {0: 10, known: total(known)}) == best


@pytest.mark.slow
def test_a_plan_for_a_card_that_was_measured() -> None:
    """The H100's rows are bytes that torch allocated for ResNet-50, batch 64 at 224 pixels, bfloat16."""
    file = json.loads((BENCH / "results/cuda_nvidia_h100_80gb_hbm3.json").read_text())
    variants = {"off": "auto", "exact": "auto exact", "recompute": "auto recompute", "int8": "auto int8"}
    rows = {row["variant"]: row for row in file["training"]["rows"] if row["model"] == "resnet50"}
    model = MEMORY_MODELS["resnet50"]()
    efx.convert(model, "auto", seed=0)
    plan = efx.memory_plan(model, (3, 224, 224), 64, budget=1, amp=torch.bfloat16)
    for row in plan.rows[: len(MODES)]:  # blocks were not measured
        measured = rows[variants[row.configuration.mode]]
        assert (row.kept, row.peak) == pytest.approx((measured["kept"], measured["peak"]), rel=0.03)


def test_picture_and_table(tmp_path: Path) -> None:
    plan = efx.memory_plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), SHAPE, 2, "1GiB")
    lines = str(plan).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == MODES
    assert "Not counted" in lines[-1]
    plan.plot(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 5_000


def test_sizes() -> None:
    assert [parse_bytes(text) for text in (7, "1.5 GiB", "80gb", "512MiB")] == [7, 3 * 2**29, 80 * 10**9, 2**29]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (3, 32)}, "shape must be (C, H, W) of an image, got (3, 32)"),
        ({"batch": True}, "batch must be an integer of 1 or more, got True"),
        ({"budget": 0}, "budget must be bytes"),
        ({"budget": "24 apples"}, "got '24 apples'"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, sgd, got 'lion'"),
        ({"shape": (3, 4, 4)}, "model cannot run on the shape of 8x3x4x4 images"),
        ({"shape": (4, 32, 32)}, "model cannot run on the shape of 8x4x32x32 images"),
    ],
)
def test_bad_input_is_told(arguments: dict, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError) as error:
        efx.memory_plan(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(4)), **{"shape": SHAPE, **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""
