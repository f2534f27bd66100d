"""`explainfix export`: files for torch and ONNX Runtime that compute what the network does, and bad input."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("onnxscript", reason='needs the extra "test"')
pytest.importorskip("onnxruntime", reason='needs the extra "test"')

from support.compare import relative_error
from support.tiny_run import Tiny, train

from explainfix_ext.commands.webpage.subject import ExplainConfig, find_subject
from explainfix_ext.deploy import onnx_compare
from explainfix_ext.deploy.compare import Comparison
from explainfix_ext.training import models
from explainfix_ext.training.prune_checkpoint import PruneConfig, load_pruned, prune_checkpoint


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
    monkeypatch.setitem(models.PRESETS, "tiny", Tiny)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a trained network, and the same pruned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", Tiny)
        folder = tmp_path_factory.mktemp("runs")
        checkpoint = train(folder, init="dct2", memory="recompute")
        config = PruneConfig(amount=0.7, epochs=0, batches=2, granularity="channel")
        prune_checkpoint(checkpoint, folder / "pruned", config, device="cpu")
        return folder


@pytest.fixture
def run(run, folder):
    """Run `explainfix export`, where TRAINED and PRUNED are files -> (exit code, stdout, stderr)."""
    places = {"TRAINED": folder / "trained" / "dct2+recompute" / "checkpoint.pt", "PRUNED": folder / "pruned/model.pt"}

    def call(line: str) -> tuple[int, str, str]:
        return run("export " + " ".join(str(places.get(word, word)) for word in line.split()))

    return call


def network_of(folder: Path, kind: str) -> nn.Module:
    if kind == "PRUNED":
        return load_pruned(folder / "pruned" / "model.pt")[0].eval()
    path = folder / "trained" / "dct2+recompute" / "checkpoint.pt"
    return find_subject(ExplainConfig(model=str(path), device="cpu")).network.eval()


def output_of_printed_lines(out: str, x: Tensor, apart: bool) -> Tensor:
    """Loads the file by the lines of Python that the command printed, and runs it; `apart`: in another process."""
    lines = [line.strip() for line in out.partition("To load it:\n")[2].splitlines()]
    torch.save(x, "x.pt")
    if "import torch" in lines:
        ends = ["x = torch.load('x.pt')", "torch.save(network(x), 'y.pt')"]
    else:
        ends = ["import torch", "feed = {session.get_inputs()[0].name: torch.load('x.pt').numpy()}"]
        ends += ["torch.save(torch.from_numpy(session.run(None, feed)[0]), 'y.pt')"]
    program = "\n".join([*lines, *ends])
    if apart:
        subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
    else:
        exec(program, {})
    return torch.load("y.pt")


@pytest.mark.parametrize(
    ("kind", "options", "first"),
    [
        ("TRAINED", "", "0 .*(kernel|convolution)"),
        ("PRUNED", "--batch 2", "0 .*(kernel|convolution)"),
        ("TRAINED", "--to onnx", "0 +(IndexConv|Conv)"),
        ("PRUNED", "--to onnx --plain", "0 +Conv"),
    ],
)
def test_a_trained_network_is_a_file_that_computes_the_same(run, folder, tmp_path, kind, options, first):
    code, out, error = run(f"{kind} {options} --out made/net")
    assert code == 0, error
    assert re.search(rf"^convolution +runs as\n{first}$", out, re.MULTILINE), out
    assert float(re.search(r"^relative difference from the network: (\S+)$", out, re.MULTILINE)[1]) < 1e-5
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["net"]
    network, x = network_of(folder, kind), torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        expected = network(x)
    apart = (kind, options) == ("TRAINED", "")
    assert relative_error(output_of_printed_lines(out, x, apart), expected) < 1e-5
    assert ("_onnx" in out) == ("IndexConv" in out)


@pytest.mark.filterwarnings("ignore:.*little is left to learn")
def test_a_model_by_name_as_json(run, tmp_path):
    code, out, error = run("basicblock@0.5 --init dct2 --size 3x40x48 --classes 5 --to onnx --out n.onnx --json")
    assert code == 0, error
    found = json.loads(out)
    assert (found["to"], found["file"], found["bytes"]) == ("onnx", "n.onnx", (tmp_path / "n.onnx").stat().st_size)
    assert "IndexConv" in found["steps"].values()
    assert 0 < found["relative_difference"] < 1e-5
    namespace: dict = {}
    exec("\n".join(found["load"]), namespace)
    assert namespace["session"].get_inputs()[0].shape == ["batch", 3, 40, 48]
    assert namespace["session"].get_outputs()[0].shape == ["batch", 5]


def test_without_onnxruntime_it_says_that_nothing_was_compared(run, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    code, out, error = run("tiny --init dct2 --size 1x12x12 --classes 3 --to onnx --plain --out net.onnx")
    assert code == 0, error
    assert "relative difference from the network: not compared: onnxruntime is not installed\n" in out
    assert (tmp_path / "net.onnx").exists()


def test_a_file_that_computes_something_else_is_not_kept(run, tmp_path, monkeypatch):
    failed = Comparison(0.5, failure="its outputs would differ")
    monkeypatch.setattr(onnx_compare, "compare_in_onnxruntime", lambda *arguments: failed)
    (tmp_path / "net.onnx").write_text("before")
    code, out, error = run("tiny --size 1x12x12 --classes 3 --to onnx --out net.onnx")
    assert (code, out) == (1, "")
    assert "nothing was written, ONNX Runtime computes something else: its outputs would differ" in error
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "before"


class Branching(nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self, in_channels: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_classes, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        return y if y.sum() > 0 else -y


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("TRAINED", "Missing option '--out'"),
        ("TRAINED --out o --to jit", "to must be one of optimized, onnx, got 'jit'"),
        ("TRAINED --out o --batch 0", "batch must be at least 1, got 0"),
        ("TRAINED --out o --plain", "plain is of --to onnx, got --to optimized"),
        ("TRAINED --out o --size big", "size must be PIXELS or CHANNELSxHEIGHTxWIDTH, such as 1x28x28, got 'big'"),
        ("TRAINED --out o --size 3x12x12", "checkpoint.pt' cannot take images of 3x12x12: "),
        ("TRAINED --out o --init dct2", "init is of a model's name, and MODEL is a file"),
        ("TRAINED --out .", "explainfix: . is a folder: it is in the way of a file to write"),
        ("TRAINED --out ..", "is a folder: it is in the way of a file to write"),
        ("PRUNED --out o --data no.npz", "no.npz not found"),
        ("no.pt --out o", "no.pt not found: expected a checkpoint"),
        ("tinny --out o", "got 'tinny'; did you mean tiny?"),
        ("tiny --out o --size 0", "size must be PIXELS or"),
        ("branching --out o", "nothing was written, the network stays as it is: torch.fx cannot trace it: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, line, message):
    monkeypatch.setitem(models.PRESETS, "branching", Branching)
    code, out, error = run(line)
    assert (code, out) == (2, "")
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_without_onnx_it_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, error = run("tiny --to onnx --out o")
    assert (code, error) == (2, 'explainfix: ONNX files need onnx: pip install "explainfix_ext[onnx]"\n')


def test_damaged_files_beside_a_pruned_network_are_named(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"results\.json not found: expected what explainfix prune wrote"):
        load_pruned(tmp_path / "model.pt")
    (tmp_path / "results.json").write_text("[1")
    with pytest.raises(ValueError, match=r"results\.json cannot be read \(.*\): expected what explainfix prune wrote"):
        load_pruned(tmp_path / "model.pt")
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"results\.json holds a list, not a dict"):
        load_pruned(tmp_path / "model.pt")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json is damaged: its configuration must be a dict"):
        load_pruned(tmp_path / "model.pt")
