"""`explainfix bench`: bad input, lists, tables and files, and how it keeps torch to an instruction set."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import warnings

import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')

from explainfix_ext import cli
from explainfix_ext.commands import bench as command
from explainfix_ext.commands.benchmarks import cases, conv, isa, jobs, models, peaks, report
from explainfix_ext.commands.benchmarks.cases import LAYER_CASES, MODEL_CASES, ModelCase
from explainfix_ext.commands.benchmarks.peaks import Peaks, measure_peaks

TINY = "depthwise-3x3-672@14"
PEAKS = Peaks(2e9)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run `explainfix bench` with a line of options in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main sets its own
    monkeypatch.setattr(peaks, "measure_peaks", lambda: PEAKS)  # takes seconds, and has its own test

    def call(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["bench", *shlex.split(line)])
        return (exit_.value.code or 0, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--cases index-3x3-64x56", "unknown case 'index-3x3-64x56'; nearest: index-3x3-64@56"),
        ("--cases stem*,resnet18* --kind layer", "unknown case 'resnet18*'; expected index-3x3-64@56, "),
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
    monkeypatch.setattr(command, "_measure", lambda *arguments: pytest.fail("--list measures nothing"))
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
    assert error == ""


def test_table_shows_ratio_peak_and_error(run):
    code, out, error = run(f"--cases {TINY} --threads 1 --quick")
    assert code == 0, error
    (line,) = (line for line in out.splitlines() if "forward" in line)
    assert re.search(rf"{TINY} .* ms .* ms +[\d.]+x +[\d.]+x +\d+% FMA +[\d.]+ +\de-\d\d", line), line


def test_models_are_shown_and_drawn(run, monkeypatch, tmp_path):
    pytest.importorskip("timm", reason='needs the extra "demo"')
    pytest.importorskip("matplotlib", reason='needs the extra "demo"')
    small = ModelCase("tiny-inference", "a test", "bottleneck", "inference", batch=2, size=32, classes=10)
    monkeypatch.setattr(cases, "select", lambda *arguments: [small])
    code, out, error = run("--threads 1 --quick --out cpu.json")
    assert code == 0, error
    assert [row["mode"] for row in json.loads((tmp_path / "cpu.json").read_text())["rows"]] == [
        *models.MODES["inference"]
    ]
    assert "ours, density 0.1" in out


def test_wrong_results_end_the_command_and_are_told(run, monkeypatch):
    right = conv.ours
    monkeypatch.setattr(conv, "ours", lambda *arguments: right(*arguments) * 1.001)
    code, out, error = run(f"--cases {TINY} --threads 1 --quick")
    assert (code, out) == (1, "")
    assert f"{TINY}, forward: ours computes something else than float64 does" in error.splitlines()[-1]


def test_what_there_is_is_kept_when_interrupted(run, monkeypatch, tmp_path):
    measured = jobs.measure_layer

    def once(case, direction, *arguments, **options):
        if direction == "input gradient":
            raise KeyboardInterrupt
        return measured(case, direction, *arguments, **options)

    monkeypatch.setattr(jobs, "measure_layer", once)
    code, _, _ = run(f"--cases {TINY} --threads 1 --quick --out cpu.json")
    assert code == 130
    assert len(json.loads((tmp_path / "cpu.json").read_text())["rows"]) == 1


def test_text_of_a_report_is_its_json():
    for rows in ([], [{"case": "a"}], [{"case": "a"}, {"case": "b"}]):
        found = report.as_json(rows, PEAKS, "avx2", quick=False)
        assert json.loads(report.as_text(found)) == found


def test_peaks_are_positive_numbers():
    found = measure_peaks(rounds=1)
    assert found.operations == found.fma_flops / 2 > 0


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
    for name, value in isa.LIMITS["avx2"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(isa.binaries, "set_cpu_isa", lambda name: name)
    assert isa.use_isa("avx2", []) == "avx2"
    monkeypatch.setattr(isa.binaries, "set_cpu_isa", lambda name: "plain")
    with pytest.raises(ValueError, match="isa 'avx2' is not there: our kernels run on 'plain' here"):
        isa.use_isa("avx2", [])
