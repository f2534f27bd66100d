"""explainfix bench: what it measures is right before it is timed, and its ratios are what the clock said."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import warnings

import pytest
import torch

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')

from explainfix_ext import FixedConv2d, cli
from explainfix_ext._support import timing
from explainfix_ext.commands import app as commands
from explainfix_ext.commands import benchmarks
from explainfix_ext.commands.benchmarks import LAYER_CASES, MODEL_CASES, LayerCase, ModelCase, conv, models, report

TINY = "depthwise-3x3-672@14"
LAYER = LayerCase("tiny", "a test", 4, 6, 5, batch=2)
MODEL = ModelCase("tiny-training", "a test", "bottleneck", "training", batch=2, size=32, classes=10)
PEAKS = benchmarks.Peaks(2e9)


class Clock:
    """Time that passes only where a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, *seconds: float):
        """A call that takes these seconds, one after another, and then always the last."""
        left = list(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run `explainfix bench` with a line of options in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main sets its own
    monkeypatch.setattr(benchmarks, "measure_peaks", lambda: PEAKS)  # takes seconds, and has its own test

    def call(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["bench", *shlex.split(line)])
        return (exit_.value.code or 0, *capsys.readouterr())

    return call


# timing ---------------------------------------------------------------------------------------------------------------


def test_ratio_is_that_of_the_medians():
    clock = Clock()
    # The first two calls of each are the warm-up.
    calls = {"slow": clock.call("slow", 9, 9, 4, 6, 8), "fast": clock.call("fast", 9, 9, 2, 2, 1)}
    timings = timing.interleaved(calls, rounds=3, least_seconds=0.0, clock=clock)
    assert timings["slow"].seconds == (4, 6, 8)
    assert timings["fast"].seconds == (2, 2, 1)
    assert timing.ratio(timings, over="slow", of="fast") == {"median": 3, "quartiles": [2.5, 5.5]}
    assert timing.ratio(timings, over="fast", of="slow")["median"] == pytest.approx(1 / 3)
    assert timing.fastest(timings, ("slow", "fast")) == "fast"


def test_short_calls_are_repeated_and_rounds_begin_with_another():
    clock = Clock()
    calls = {"a": clock.call("a", 0.5), "b": clock.call("b", 2.0)}
    timings = timing.interleaved(calls, rounds=2, least_seconds=1.5, clock=clock)
    assert "".join(clock.log) == "aa" + "bb" + "aaab" + "baaa"
    assert timings["a"] == timing.Timing((0.5, 0.5), repeats=3)
    assert timings["b"].as_dict() == {"median": 2.0, "quartiles": [2.0, 2.0], "repeats": 1}


def test_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        timing.interleaved({}, rounds=0)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with timing.using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_single_round_has_quartiles():
    assert timing.quartiles([3.0]) == [3.0, 3.0]
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2.0, 4.0]


def test_peaks_are_positive_numbers():
    peaks = benchmarks.measure_peaks(rounds=1)
    assert peaks.operations == peaks.fma_flops / 2 > 0


# cases ----------------------------------------------------------------------------------------------------------------


def test_names_are_unique_and_have_reasons():
    cases = [*LAYER_CASES, *MODEL_CASES]
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.reason for case in cases)
    assert {case.task for case in MODEL_CASES} == set(models.MODES)


@pytest.mark.parametrize("direction", conv.DIRECTIONS)
@pytest.mark.parametrize("case", LAYER_CASES, ids=lambda case: case.name)
def test_every_layer_case_is_right(case: LayerCase, direction: str):
    small = case.quick()
    with torch.no_grad():
        errors = conv.checked_errors(small, direction, conv.layer_calls(small, direction))
    assert {"torch", "torch channels_last", "ours", "ours channels_last"} <= errors.keys() <= set(conv.CALLS)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("load-add", 4 * 6 * 2 * 25)),
        ({"stride": 2}, ("load-add", 4 * 6 * 2 * 9)),
        ({"density": 0.25}, ("load-add", 6 * 2 * 25)),
        ({"rank": 2}, ("FMA", 2 * 4 * 6 * 2 * 25)),
        ({"rank": 4, "pca": True, "kernel": 5}, ("FMA", 4 * 4 * 6 * 2 * 25)),
        ({"groups": 2}, ("load-add", 2 * 6 * 2 * 25)),
        ({"groups": 4, "out_channels": 4}, ("FMA", 4 * 9 * 2 * 25)),
    ],
)
def test_operations_are_counted(fields, expected):
    case = LayerCase(
        **{"name": "n", "reason": "r", "in_channels": 4, "out_channels": 6, "size": 5, "batch": 2} | fields
    )
    assert case.operations(case.bank()) == expected


def test_pca_functions_are_orthonormal_and_cases_repeat():
    case = LayerCase("n", "r", 4, 6, 5, rank=4, pca=True)
    rows = case.bank().basis.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4, dtype=torch.float64))
    assert torch.equal(case.bank().weight(), case.bank().weight())


# rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", conv.DIRECTIONS)
def test_row_of_a_layer(direction):
    row = conv.measure_layer(LAYER, direction, threads=1, rounds=3, peak=1e9, least_seconds=0.0)
    seconds = {name: found["median"] for name, found in row["seconds"].items() if found is not None}
    torch_name = "torch channels_last" if row["torch_layout"] == "channels_last" else "torch"
    assert seconds[torch_name] == min(seconds["torch"], seconds["torch channels_last"])
    assert row["ratio"]["median"] == pytest.approx(seconds[torch_name] / seconds["ours"])
    assert row["ratio_channels_last"]["median"] == pytest.approx(seconds[torch_name] / seconds["ours channels_last"])
    assert row["peak_fraction"] == pytest.approx(4 * 6 * 2 * 25 / (seconds["ours"] * 1e9))
    assert row["seconds"].keys() == row["error"].keys() == set(conv.CALLS)
    assert (row["input"], row["filters"], row["dtype"]) == ([2, 4, 5, 5], [6, 4, 3, 3], "float32")
    assert row["plan"]


def test_wrong_results_are_not_timed(run, monkeypatch):
    right = conv.ours
    monkeypatch.setattr(conv, "ours", lambda *arguments: right(*arguments) * 1.001)
    monkeypatch.setattr(conv, "interleaved", lambda *arguments: pytest.fail("it was timed"))
    for direction in conv.DIRECTIONS:
        with pytest.raises(FloatingPointError, match=f"tiny, {direction}: ours computes something else.* 1.0e-03"):
            conv.measure_layer(LAYER, direction, threads=1, rounds=1, peak=1e9)
    code, out, error = run(f"--cases {TINY} --threads 1 --quick")
    assert (code, out) == (1, "")
    assert f"{TINY}, forward: ours computes something else than float64 does" in error.splitlines()[-1]


def test_rows_of_a_model():
    pytest.importorskip("timm", reason='needs the extra "demo"')
    rows = models.measure_model(MODEL, threads=1, rounds=2, least_seconds=0.0)
    assert [row["mode"] for row in rows] == ["learned", "frozen", "ours", "ours, density 0.1"]
    assert rows[0]["ratio"]["median"] == 1
    for row in rows:
        seconds = (rows[0]["seconds"]["median"], row["seconds"]["median"])
        assert row["ratio"]["median"] == pytest.approx(seconds[0] / seconds[1])
        assert 0 < row["error"] < models.TOLERANCE
        assert row["layout"] in ("NCHW", "channels_last")


def test_networks_of_a_model_case():
    pytest.importorskip("timm", reason='needs the extra "demo"')
    built = {mode: models.build_mode(MODEL, mode) for mode in models.MODES["training"]}
    trainable = {mode: sum(p.requires_grad for p in model.parameters()) for mode, model in built.items()}
    assert trainable["learned"] > trainable["frozen"] == trainable["ours"]
    fixed = [m for m in built["ours, density 0.1"].modules() if isinstance(m, FixedConv2d)]
    assert fixed
    assert all(layer.bank.density == pytest.approx(0.1, abs=0.01) for layer in fixed)
    before = [p.clone() for p in built["ours"].parameters()]
    models.step(MODEL, built["ours"])()
    pairs = zip(before, built["ours"].parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


def test_wrong_networks_are_not_timed(monkeypatch):
    pytest.importorskip("timm", reason='needs the extra "demo"')
    right = FixedConv2d.forward
    monkeypatch.setattr(FixedConv2d, "forward", lambda self, x: right(self, x) * 1.1)
    with pytest.raises(FloatingPointError, match="tiny-training: ours computes something else"):
        models.measure_model(MODEL, threads=1, rounds=1, least_seconds=0.0)


# the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--cases index-3x3-64x56", "unknown case 'index-3x3-64x56'; nearest: index-3x3-64@56"),
        ("--cases stem*,resnet18* --kind layer", "unknown case 'resnet18*'; nearest: "),
        ("--kind layers", "kind must be layer, model or all, got 'layers'"),
        ("--threads 1,two", "threads must be numbers from 1 to "),
        ("--threads 0", "got '0'"),
        ("--threads 100000", "got '100000'"),
        ("--rounds 0", "rounds must be at least 1, got 0"),
        ("--isa sse", "isa must be one of avx512, avx2, plain, got 'sse'"),
        ("--out results", "out must be a file named FILE.json, got results"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, line, message):
    code, out, error = run(line)
    assert (code, out) == (2, "")
    (told,) = error.splitlines()
    assert told.startswith("explainfix: ")
    assert message in told
    assert not list(tmp_path.iterdir())


def test_list_tells_each_case_and_its_reason(run, monkeypatch):
    monkeypatch.setattr(commands, "_bench", lambda *arguments: pytest.fail("--list measures nothing"))
    code, out, _ = run("--list")
    assert code == 0
    assert all(case.name in out for case in [*LAYER_CASES, *MODEL_CASES])
    listed = json.loads(run("--list --json --kind model")[1])
    assert listed == [{"case": case.name, "kind": "model", "reason": case.reason} for case in MODEL_CASES]


def test_quick_run_gives_json_and_a_picture(run, tmp_path):
    pytest.importorskip("matplotlib", reason='needs the extra "demo"')
    code, out, error = run(f"--cases {TINY} --threads 1 --quick --json --out results/cpu.json")
    assert code == 0, error
    found = json.loads(out)
    assert found == json.loads((tmp_path / "results" / "cpu.json").read_text())
    assert (tmp_path / "results" / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert {"hardware", "cores", "torch", "explainfix_ext", "isa", "date", "quick", "rows"} <= found.keys()
    assert [(row["case"], row["task"], row["threads"]) for row in found["rows"]] == [
        (TINY, "forward", 1),
        (TINY, "input gradient", 1),
    ]
    assert all(len(row["ratio"]["quartiles"]) == 2 for row in found["rows"])
    assert "100%" in error


def test_table_shows_ratio_peak_and_error(run):
    code, out, error = run(f"--cases {TINY} --threads 1 --quick")
    assert code == 0, error
    (line,) = (line for line in out.splitlines() if "forward" in line)
    assert re.search(rf"{TINY} .* ms .* ms +[\d.]+x +[\d.]+x +\d+% FMA +\de-\d\d", line), line


def test_models_are_shown_and_drawn(run, monkeypatch, tmp_path):
    pytest.importorskip("timm", reason='needs the extra "demo"')
    pytest.importorskip("matplotlib", reason='needs the extra "demo"')
    small = ModelCase("tiny-inference", "a test", "bottleneck", "inference", batch=2, size=32, classes=10)
    monkeypatch.setattr(benchmarks, "select", lambda *arguments: [small])
    code, out, error = run("--threads 1 --quick --out cpu.json")
    assert code == 0, error
    assert [row["mode"] for row in json.loads((tmp_path / "cpu.json").read_text())["rows"]] == [
        *models.MODES["inference"]
    ]
    assert "ours, density 0.1" in out


def test_what_there_is_is_kept_when_interrupted(run, monkeypatch, tmp_path):
    measured = benchmarks.measure_layer

    def once(case, direction, *arguments, **options):
        if direction == "input gradient":
            raise KeyboardInterrupt
        return measured(case, direction, *arguments, **options)

    monkeypatch.setattr(benchmarks, "measure_layer", once)
    code, _, _ = run(f"--cases {TINY} --threads 1 --quick --out cpu.json")
    assert code == 130
    assert len(json.loads((tmp_path / "cpu.json").read_text())["rows"]) == 1


def test_text_of_a_report_is_its_json():
    for rows in ([], [{"case": "a"}], [{"case": "a"}, {"case": "b"}]):
        found = report.as_json(rows, PEAKS, "avx2", quick=False)
        assert json.loads(report.as_text(found)) == found


# the instruction set --------------------------------------------------------------------------------------------------


def test_isa_limits_torch_by_starting_anew(run, monkeypatch):
    started = []

    def execve(program, words, environment):
        started.append((program, words, environment))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    run(f"--isa avx2 --cases {TINY} --quick")
    ((program, words, environment),) = started
    assert program == sys.executable
    assert words[1:] == ["-m", "explainfix_ext.cli", "bench", "--isa", "avx2", "--cases", TINY, "--quick"]
    assert (environment["ATEN_CPU_CAPABILITY"], environment["ONEDNN_MAX_CPU_ISA"]) == ("avx2", "AVX2")


def test_isa_in_an_environment_with_the_limits_goes_on(monkeypatch):
    monkeypatch.setattr(os, "execve", lambda *arguments: pytest.fail("started anew for ever"))
    for name, value in benchmarks._LIMITS["avx2"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(benchmarks.binaries, "set_cpu_isa", lambda isa: isa)
    assert benchmarks.use_isa("avx2", []) == "avx2"
    monkeypatch.setattr(benchmarks.binaries, "set_cpu_isa", lambda isa: "plain")
    with pytest.raises(ValueError, match="isa 'avx2' is not there: our kernels run on 'plain' here"):
        benchmarks.use_isa("avx2", [])
