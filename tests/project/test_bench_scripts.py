"""The scripts around the GPU benchmarks: gpu.sh, its report, the reader of machine code; without a GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from support.paths import BENCH

pytest.importorskip("rich", reason='needs the extra "demo"')

from support.bench_gpu import Ceilings, conv, layer_report, slug

from explainfix_ext.commands.benchmarks.cases import LayerCase

SCRIPTS = ("bench_cuda_conv", "bench_cuda_training")


@pytest.fixture
def script(monkeypatch):
    """Imports a file of bench/ as a script would: its neighbours are on the path."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


# the machine code -----------------------------------------------------------------------------------------------------

USAGE = """
Fatbin elf code:
================
arch = sm_90
compressed

Resource usage:
 Common:
  GLOBAL:28 CONSTANT[4]:224
 Function _ZN10explainfix6device16depthwise_kernelIfEEvPKT_:
  REG:168 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:608 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
Fatbin elf code:
================
arch = sm_90

	code for sm_90
		Function : _ZN10explainfix6device16depthwise_kernelIfEEvPKT_
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe200000e0800 */
        /*0010*/              @!P0 HMMA.16816.F32.BF16 R4, R8, R2, R4 ;       /* 0x0000000208047c3c */
        /*0020*/              @UP1 LDSM.16.M88.4 R8, [R3] ;                   /* 0x000000000308783b */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64] ; /* 0x0000000002077fae */
        /*10040*/                  STL [R1+0x4], R5 ;                         /* 0x0000040501007387 */
"""


def test_sass_is_counted_by_kernel_and_opcode(script):
    sass = script("sass")
    name = ("sm_90", "_ZN10explainfix6device16depthwise_kernelIfEEvPKT_")
    usage, opcodes = sass.parse_usage(USAGE.splitlines()), sass.parse_sass(SASS.splitlines())
    assert usage == {name: {"registers": 168, "shared": 1024, "stack": 8, "local": 0}}
    assert opcodes == {name: {"LDC": 1, "HMMA": 1, "LDSM": 1, "LDGSTS": 1, "STL": 1}}
    (row,) = sass.rows_of(usage, opcodes, {"depthwise": (128, 64 * 1024)})
    assert (row["HMMA"], row["LDL"], row["STL"], row["instructions"]) == (1, 0, 1, 5)
    assert (row["threads"], row["dynamic_shared"]) == (128, 65536)
    assert sass.spills(row)
    assert not sass.spills(row | {"STL": 0})


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "expected"),
    [
        ("sm_80", 32, 256, 0, 1.0),  # 64 warps
        ("sm_80", 128, 256, 0, 0.25),  # 65536 / 128 / 256 = 2 blocks of 8 warps
        ("sm_90", 168, 128, 0, 0.1875),  # 3 warps fit into each part: 3 blocks of 4
        ("sm_90", 32, 256, 65536, 0.375),  # 228 / 65 = 3 blocks
        ("sm_90a", 32, 256, 227 * 1024, 0.125),  # the most a block may have
        ("sm_80", 33, 32, 0, 0.5),  # no more than 32 blocks
        ("sm_70", 32, 256, 0, None),
    ],
)
def test_occupancy(script, arch, registers, threads, shared, expected):
    assert script("sass").occupancy(arch, registers, threads, shared) == expected


def test_names_are_shortened(script):
    text = "void explainfix::device::map_kernel<(explainfix::PassKind)0, 1, c10::Half>(explainfix::Pass const&)"
    assert script("sass")._shortened(text) == "map_kernel<0, 1, Half>"


# scripts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SCRIPTS, "gpu_report", "sass", "compress", "masks", "wide"])
def test_script_says_what_it_does(script, capsys, name):
    with pytest.raises(SystemExit) as exit_:
        script(name).main(["--help"])
    assert exit_.value.code == 0
    assert f"python bench/{name}.py" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", SCRIPTS)
def test_script_says_that_there_is_no_gpu(script, capsys, name):
    with pytest.raises(SystemExit) as exit_:
        script(name).main([])
    assert exit_.value.code == 2
    assert "no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("bench_cuda_conv", "--cases nonsense-*", "unknown case 'nonsense-*'"),
        ("bench_cuda_training", "--models resnet51", "unknown model 'resnet51'"),
        (
            "sass",
            "--launch depthwise=4096:0",
            "must be PART=THREADS:BYTES with 1 to 1024 threads, got 'depthwise=4096",
        ),
        ("sass", "no_such.so", "no CUDA binary at no_such.so: build with EXPLAINFIX_CUDA=1"),
        ("gpu_report", "no_such", "no_such is not there"),
    ],
)
def test_bad_arguments_are_named(script, capsys, name, line, message):
    with pytest.raises(SystemExit) as exit_:
        script(name).main(line.split())
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_parts_are_merged(tmp_path, script, capsys):
    ceilings = Ceilings(3e12, {"bfloat16": 8e14, "tf32": 4e14, "float32": 5e13})
    case, quick = LayerCase("tiny", "a test", 4, 6, 5), {"device": "cpu", "graph": False, "least_seconds": 0.0}
    rows = [conv.measure_cuda_layer(case, "forward", ceilings, 1, **quick)]
    failures = [{"case": "x", "task": "forward", "why": "wrong"}]
    (tmp_path / "conv.json").write_text(json.dumps(layer_report(rows, failures, ceilings)))
    (tmp_path / "parts.tsv").write_text("tests\t0\t12\t30 passed\nconv\t124\t330\t\n")
    script("gpu_report").main([str(tmp_path), "--name", "check"])
    (merged,) = tmp_path.glob("cuda_*_check.json")
    assert json.loads(merged.read_text())["parts"][0]["last_line"] == "30 passed"
    shown = capsys.readouterr().out
    assert "| conv | stopped at its time limit | 330 |" in shown
    assert "| tiny | forward | dense |" in shown
    assert "FAILED: x, forward, wrong" in shown


def test_report_says_what_to_look_at_next(script):
    def row(case, ratio, share):
        return {"case": case, "task": "forward", "ratio": {"median": ratio}, "copy_fraction": share}

    def step(variant, seconds):
        return {"model": "net", "variant": variant, "seconds": {"median": seconds}, "graph_seconds": {"median": 0.01}}

    report = {
        "parts": [{"part": "tests", "exit_code": 1}, {"part": "conv", "exit_code": 0}],
        "conv": {"rows": [row("a", 0.8, 0.5), row("b", 2.0, 0.7), row("c", 1.5, 0.2), row("d", 3.0, 0.9)]},
        "training": {"rows": [step("learned", 0.011), step("auto", 0.03)]},
    }
    found = script("gpu_report").findings(report)
    assert found[0] == "tests failed (1)."
    assert "a, forward: torch is 1.25 times as fast" in found[1]
    assert [line[0] for line in found[2:5]] == ["c", "a", "b"]
    assert found[5:] == ["net, auto: a step takes 3.0 times as long as from a CUDA graph: the host is the limit."]
    assert script("gpu_report").findings({"parts": []}) == []


def test_slug():
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"


FAKE_PYTHON = """#!/bin/bash
case "$*" in
  *bench_cuda_conv*) echo measured; echo "that went wrong"; exit 3 ;;
  *bench_cuda_training*) sleep 60 ;;
  *) echo "ran $*" ;;
esac
"""


def run_gpu_script(tmp_path: Path, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """bench/gpu.sh with a `python3` that only says what it was asked."""
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    path = BENCH / "gpu.sh"
    if text is not None:  # in a repository of its own
        path = tmp_path / "repo" / "bench" / "gpu.sh"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return subprocess.run(
        ["bash", path, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHON": str(fake)}, timeout=60
    )


def test_gpu_script_goes_on_after_a_part_that_fails_or_takes_too_long(tmp_path):
    text = (BENCH / "gpu.sh").read_text().replace("training 240", "training 5")
    done = run_gpu_script(tmp_path, str(tmp_path / "out"), "measure", text=text)
    out = tmp_path / "out"
    assert done.returncode == 1
    parts = [line.split("\t") for line in (out / "parts.tsv").read_text().splitlines()]
    assert [(name, code) for name, code, *_ in parts] == [
        ("build", "0"), ("status", "0"), ("conv", "3"), ("training", "124"),
    ]  # fmt: skip
    assert parts[2][3] == "that went wrong"
    assert "measured" in (out / "measure.log").read_text()
    assert "gpu_report.py" in (out / "table.md").read_text()
    assert len(list(out.iterdir())) <= 8


def test_gpu_script_names_its_arguments(tmp_path, script):
    for arguments in ([], [str(tmp_path), "nonsense"], [str(tmp_path), "check", "more"]):
        done = run_gpu_script(tmp_path, *arguments)
        assert (done.returncode, done.stderr) == (2, "usage: bash bench/gpu.sh OUT [check|measure|all]\n")
    subprocess.run(["bash", "-n", BENCH / "gpu.sh"], check=True)
