"""The GPU benchmarks: what they compute runs here on the CPU; on a GPU the tests marked `cuda` run them as they are."""

from __future__ import annotations

import dataclasses
import importlib
import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("rich", reason='needs the extra "demo"')

from support.bench_gpu import (
    CUDA_CASES,
    LAYER_HEAD,
    Ceilings,
    conv,
    device,
    floors,
    layer_cells,
    layer_report,
    measure_ceilings,
    rich_table,
)
from support.paths import BENCH

from explainfix_ext.commands.benchmarks.cases import LayerCase
from explainfix_ext.commands.benchmarks.conv import DIRECTIONS
from explainfix_ext.ops.plans.plan import PLANS, check_plan

CEILINGS = Ceilings(copy=3e12, flops={"bfloat16": 8e14, "float16": 8e14, "tf32": 4e14, "float32": 5e13})
NOW = {"rounds": 1, "least_seconds": 0.0}
QUICK = {**NOW, "device": "cpu", "graph": False}


def layer(kernel: str, K: int = 3, stride: int = 1, dtype: torch.dtype = torch.float32, channels: int = 8) -> LayerCase:
    """A small one for that kernel, whose sizes are no multiples of any tile."""
    about = {"kernel": K, "stride": stride, "batch": 2, "dtype": dtype}
    kinds = {"dense": {"rank": 4}, "depthwise": {"groups": channels}, "hadamard": {"init": "hadamard"}}
    about |= kinds[kernel]
    outputs = channels + {"dense": 4, "depthwise": 0, "hadamard": 8}[kernel]
    return LayerCase(f"{kernel}-{K}x{K}", "a test", channels, outputs, 11, **about)


@pytest.fixture
def script(monkeypatch):
    """Imports a file of bench/ as a script would: its neighbours are on the path."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


# cases, floors, clock -------------------------------------------------------------------------------------------------


def test_cases_have_names_reasons_and_a_kernel():
    assert len({case.name for case in CUDA_CASES}) == len(CUDA_CASES)
    for case in CUDA_CASES:
        small = dataclasses.replace(case.quick(), batch=1)
        assert case.reason
        assert case.batch in (16, 64)
        assert check_plan(conv.kernel_for(case), small.bank(), case.groups) == PLANS[conv.kernel_for(case)]


def test_floors_count_operations_and_bytes():
    case = LayerCase("x", "", 128, 256, 28, rank=4, batch=64, dtype=torch.bfloat16)
    pixels = 64 * 28 * 28
    least = floors(case, case.bank(), CEILINGS)
    assert least["operations"] == pytest.approx(256 * 128 * 4 * pixels / 4e14)
    assert least["bytes"] == pytest.approx(((128 + 256) * pixels + 256 * 128 * 4) * 2 / 3e12)
    assert least["dense"] == pytest.approx(256 * 128 * 9 * pixels / 4e14)
    single = dataclasses.replace(case, dtype=torch.float32)
    assert floors(single, case.bank(), CEILINGS)["operations"] == pytest.approx(256 * 128 * 4 * pixels / 2.5e13)
    assert floors(single, case.bank(), CEILINGS, tf32=True)["operations"] == pytest.approx(256 * 512 * pixels / 2e14)


def test_floors_without_tensor_cores():
    case = LayerCase("x", "", 64, 64, 28, batch=64, density=0.1, dtype=torch.bfloat16)
    count = int(case.bank().nonzero.sum()) * 64 * 28 * 28
    assert floors(case, case.bank(), CEILINGS)["operations"] == pytest.approx(count / 2.5e13)
    case = LayerCase("x", "", 144, 144, 56, groups=144, batch=64, stride=2, dtype=torch.bfloat16)
    least = floors(case, case.bank(), CEILINGS)
    assert least["operations"] == pytest.approx(144 * 9 * 64 * 28**2 / 2.5e13)
    assert least["bytes"] == pytest.approx((2 * 64 * 144 * (56**2 + 28**2) + 144) / 3e12)


def test_ceilings_are_positive():
    found = measure_ceilings("cpu", nbytes=2**16, matmul=32, rounds=1)
    assert found.copy > 0
    assert set(found.flops) == set(CEILINGS.flops)
    assert min(found.flops.values()) > 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_event_clock_adds_up_what_passed(monkeypatch):
    now = iter((5.0, 7.0, 7.5))  # milliseconds

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(now)

        def synchronize(self) -> None:
            assert self.at

        def elapsed_time(self, later: Event) -> float:
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = device.clock_of("cuda")
    assert [clock(), clock(), clock()] == pytest.approx([0.0, 2e-3, 2.5e-3])


@pytest.mark.parametrize(("nbytes", "count"), [(1, 64), (30, 4), (49, 3), (50, 3), (101, 1)])
def test_inputs_do_not_fit_into_the_cache(monkeypatch, nbytes, count):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50))
    assert device.inputs_needed(nbytes, "cuda") == count
    assert count == 64 or count * nbytes > 100
    assert device.inputs_needed(nbytes, "cpu") == 1


# rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kernel", ["dense", "depthwise", "hadamard"])
def test_row_of_a_layer_goes_into_table_and_picture(tmp_path, script, kernel, direction):
    row = conv.measure_cuda_layer(layer(kernel, dtype=torch.bfloat16), direction, CEILINGS, **QUICK)
    assert row["plan"] == kernel
    ours, torchs = (min(row["seconds"][name]["median"] for name in names) for names in (conv.OURS, conv.TORCH))
    assert row["ratio"]["median"] == pytest.approx(torchs / ours)
    assert row["copy_fraction"] == pytest.approx(row["floors"]["bytes"] / ours)
    assert row["floor_fraction"] == pytest.approx(max(row["floors"]["bytes"], row["floors"]["operations"]) / ours)
    assert row["torch_floor_fraction"] == pytest.approx(row["floors"]["dense"] / torchs)
    assert len(layer_cells(row)) == len(LAYER_HEAD)
    assert rich_table("t", LAYER_HEAD, [layer_cells(row)]).row_count == 1
    report = json.loads(json.dumps({"parts": [], "conv": layer_report([row], [], CEILINGS)}))
    (tmp_path / "report.json").write_text(json.dumps(report))
    script("gpu_report").main([str(tmp_path / "report.json"), "--picture", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.parametrize("wrong", [lambda y: y * 1.02, lambda y: torch.where(y == y.max(), torch.nan, y)])
def test_wrong_results_are_not_timed(monkeypatch, wrong):
    right = conv.ours
    monkeypatch.setattr(conv, "ours", lambda *arguments: wrong(right(*arguments)))
    monkeypatch.setattr(conv, "interleaved", lambda *arguments: pytest.fail("it was timed"))
    with pytest.raises(FloatingPointError, match="forward: ours computes something else than float64"):
        conv.measure_cuda_layer(layer("dense", dtype=torch.bfloat16), "forward", CEILINGS, **QUICK)


def test_float32_is_run_with_and_without_tf32(script):
    jobs = list(script("bench_cuda_conv").jobs([layer("depthwise"), layer("depthwise", dtype=torch.bfloat16)]))
    assert [(direction, tf32) for _, direction, tf32 in jobs] == [
        ("forward", False), ("input gradient", False), ("forward", True), ("input gradient", True),
        ("forward", False), ("input gradient", False),
    ]  # fmt: skip


def test_a_layer_that_fails_leaves_the_others(tmp_path, script, monkeypatch):
    bench = script("bench_cuda_conv")
    measure, out = bench.measure_cuda_layer, tmp_path / "conv.json"

    def failing(case, direction, *arguments, **options):
        if direction == "forward":
            raise RuntimeError("CUDA error: no such luck\nand more")
        return measure(case, direction, *arguments, **options)

    monkeypatch.setattr(bench, "measure_cuda_layer", failing)
    options = {**QUICK, "ceilings": {"nbytes": 2**16, "matmul": 16, "rounds": 1}}
    bench.run([layer("dense", dtype=torch.bfloat16)], out, **options)
    report = json.loads(out.read_text())
    assert [failure["why"] for failure in report["failures"]] == ["CUDA error: no such luck"]
    assert [row["task"] for row in report["rows"]] == ["input gradient"]
    monkeypatch.setattr(bench, "device_works", lambda: False)
    bench.run([layer("dense", dtype=torch.bfloat16)], out, **options | {"ceilings": options["ceilings"]})
    report = json.loads(out.read_text())
    assert "the device is lost" in report["failures"][0]["why"]
    assert not report["rows"]


def test_training_rows(script, monkeypatch):
    pytest.importorskip("torchvision", reason='needs the extra "models"')
    training = script("bench_cuda_training")
    assert "auto int8" in training.variants()
    monkeypatch.setattr(training, "variants", lambda: ["learned", "frozen", "dct2 recompute", "no_such"])
    build = training.build

    def limited(name, variant, device):
        if variant == "no_such":
            raise torch.OutOfMemoryError("CUDA out of memory\nmore")
        return build(name, variant, device)

    monkeypatch.setattr(training, "build", limited)
    rows, failures = training.measure("resnet18+pointwise", 64, 2, 1, "cpu")
    assert [row["variant"] for row in rows] == ["learned", "frozen", "dct2 recompute"]
    assert rows[0]["ratio"]["median"] == 1
    assert rows[1]["error"] == 0 < rows[2]["error"]
    assert failures == [{"model": "resnet18+pointwise", "variant": "no_such", "why": "CUDA out of memory"}]
    cells = training.training_cells(rows)
    assert {len(line) for line in cells} == {len(training.TRAINING_HEAD)}


# on a GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32", "tf32"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("K", [3, 5, 7])
@pytest.mark.parametrize("kernel", ["dense", "depthwise", "hadamard"])
def test_kernel_on_a_small_layer(kernel, K, stride, precision):
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    for channels, direction in ((8, "forward"), (24, "input gradient"), (72, "forward"), (72, "input gradient")):
        case = layer(kernel, K, stride, dtype, channels)
        options = {**NOW, "tf32": precision == "tf32", "graph": False, "search": False}
        conv.measure_cuda_layer(case, direction, CEILINGS, **options)


@pytest.mark.cuda
@pytest.mark.parametrize("case", CUDA_CASES, ids=lambda case: case.name)
def test_layer_in_a_graph(case):
    for direction in DIRECTIONS:
        row = conv.measure_cuda_layer(dataclasses.replace(case.quick(), batch=2), direction, CEILINGS, **NOW)
        assert row["seconds"]["ours"]["median"] > 0


@pytest.mark.cuda
def test_script_measures_layers_on_the_gpu(tmp_path, script):
    out = tmp_path / "conv.json"
    script("bench_cuda_conv").main(["--quick", "--rounds", "2", "--cases", "*-672@14", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["failures"] == []
    assert 1e11 < report["copy_bytes_per_second"] < 2e13


@pytest.mark.cuda
def test_script_measures_training_on_the_gpu(tmp_path, script):
    pytest.importorskip("torchvision", reason='needs the extra "models"')
    out = tmp_path / "training.json"
    options = ["--models", "resnet18", "--batch", "8", "--size", "64", "--rounds", "1", "--out", str(out)]
    script("bench_cuda_training").main(options)
    rows = {row["variant"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == set(script("bench_cuda_training").variants())
    assert 0 < rows["auto int8"]["peak"] < rows["learned"]["peak"]
    assert all(0 < row["kept"] <= row["peak"] for row in rows.values())
    assert all(row["graph_seconds"]["median"] > 0 for row in rows.values())
