"""`explainfix explain`: the page, its numbers, what it does without, bad input, and how a browser shows it."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from safetensors.torch import save_file
from support.page import check_structure
from support.tiny_run import CPU, Tiny, images, train

from explainfix_ext import convert, explainsteer, memory_report, save_memory, summary
from explainfix_ext.commands.explain import check_report
from explainfix_ext.commands.webpage import html
from explainfix_ext.commands.webpage.findings import findings
from explainfix_ext.commands.webpage.page import report_page
from explainfix_ext.commands.webpage.run import AMOUNTS, explain
from explainfix_ext.commands.webpage.subject import ExplainConfig
from explainfix_ext.explain.spectra import Spectra
from explainfix_ext.training import models
from explainfix_ext.training.checkpoint import load_weights
from explainfix_ext.training.config import TrainConfig
from explainfix_ext.training.data import load_dataset
from explainfix_ext.training.network import make_network
from explainfix_ext.training.prune_checkpoint import PruneConfig, prune_checkpoint
from explainfix_ext.training.trainer import Trainer

WEIRD = "a<b>&'c"  # in names of folders and models


class Untraceable(Tiny):
    """Its forward branches on values, and its output is cut off from autograd: nothing can follow its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 1 if x.sum() > 0 else x).detach()


class Flat(nn.Sequential):
    """No spatial convolution."""

    def __init__(self, in_channels: int, num_classes: int, scale: float) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(num_classes))


@pytest.fixture(autouse=True)
def _models(monkeypatch):
    for name, model in (("tiny", Tiny), ("odd", Untraceable), ("flat", Flat), (WEIRD, Tiny)):
        monkeypatch.setitem(models.PRESETS, name, model)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", Tiny)
        return {
            init: train(tmp_path_factory.mktemp("trained") / WEIRD, init=init, classes=2 if init == "learned" else 3)
            for init in ("learned", "dct2")
        }


pytestmark = pytest.mark.filterwarnings("error:constrained_layout")


@pytest.fixture
def run(run):
    """Run `explainfix explain` with a line of arguments, as `run` of all tests does."""
    return lambda line: run(f"explain {line}")


# The page and its numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["learned", "dct2"])
def test_page_and_json_have_the_numbers_of_the_analyses(run, checkpoints, tmp_path, init):
    path = checkpoints[init]
    code, out, error = run(f'"{path}" --batches 3 --device cpu --json')
    assert code == 0, error
    for stage in ("testing", "saliency: spectra", "counting memory", "scoring filters", "pruning"):
        assert stage in error
    found, page = json.loads(out), check_structure((tmp_path / "report.html").read_text())
    assert found["missing"] == {}
    config = TrainConfig(**torch.load(path)["config"])
    data = load_dataset(config.data, config.seed)
    network, start = (make_network(config, data)[0] for _ in range(2))
    load_weights(network, path)
    trainer = Trainer(config, data, CPU, network=network)
    batches = [tuple(batch) for batch in trainer.train_loader][:3]
    for name, model, given in (
        ("filters", network, None),
        ("saliency", network, batches),
        ("start_filters", start, None),
        ("start_saliency", start, batches),
    ):
        expected = explainsteer(model, given)
        spectra = Spectra.from_json(json.dumps(found["spectra"][name]))
        assert all(torch.allclose(spectra.ed[n], expected.ed[n], rtol=1e-5) for n in expected.ed), name
    assert found["scored_images"] == 45
    assert found["test"] == trainer.evaluate(data.test)
    assert f"{found['test']['accuracy']:.4f}" in page.text["network"]
    layers = summary(network, (1, 1, 12, 12)).layers
    assert found["summary"] == json.loads(json.dumps([vars(layer) for layer in layers]))
    for layer, row in zip(layers, page.tables.get("layers", [])[1:-1], strict=True):
        assert row[:5] == [layer.name, "x".join(map(str, layer.shape)), layer.init, layer.kernel, f"{layer.nonzero:,}"]
        assert row[5:7] == [f"{layer.stored_bytes / 1e3:,.1f}", f"{layer.dense_bytes / 1e3:,.1f}"]
    assert ("layers" in page.tables) == (init == "dct2")
    save_memory(network, "recompute")
    memory = memory_report(network.train(), data.train[:8][0])
    assert found["memory"]["recompute"]["ours"]["peak"] == memory.ours.peak
    rows = {row[0]: row[1:] for row in page.tables["memory-modes"]}
    assert list(rows) == ["mode", "torch", "off", "exact", "recompute", "int8"]
    assert rows["recompute"][0] == f"{memory.ours.peak / 2**20:,.2f}"
    assert rows["torch"][0] == f"{memory.frozen.peak / 2**20:,.2f}"
    kinds = {row[0]: row[4] for row in page.tables["memory-kinds"]}
    assert kinds["BatchNorm2d"] == f"{memory.by(lambda name, kind: kind)[0]['BatchNorm2d'] / 2**20:,.2f}"


def test_pruning_is_that_of_the_command_prune(run, checkpoints, tmp_path):
    path = checkpoints["dct2"]
    code, out, error = run(f'"{path}" --batches 3 --device cpu --json')
    assert code == 0, error
    page = check_structure((tmp_path / "report.html").read_text())
    amounts = json.loads(out)["pruning"]["amounts"]
    assert [entry["amount"] for entry in amounts] == [*AMOUNTS]
    pruned = prune_checkpoint(path, tmp_path / "o", PruneConfig(amount=0.9, epochs=0, batches=3), device="cpu")
    entry = next(entry for entry in amounts if entry["amount"] == 0.9)
    assert entry["test"] == pytest.approx(pruned["test"]["pruned"], rel=1e-6)
    for name in ("parameters", "multiply_adds", "pruned_filters", "verify_error"):
        assert entry[name] == pytest.approx(pruned["report"][name]), name
    rows = {row[0]: row[1:] for row in page.tables["pruned"]}
    assert list(rows) == ["filters pruned", "0%", "50%", "80%", "90%", "95%", "99%"]
    assert rows["90%"][:2] == [f"{entry['pruned_filters']:.0%}", f"{entry['parameters'][1]:,}"]
    assert rows["90%"][3] == f"{entry['multiply_adds'][1] / 1e6:,.2f}"
    assert rows["90%"][-1] == f"{entry['test']['accuracy']:.4f}"
    assert rows["0%"][-1] == f"{pruned['test']['unpruned']['accuracy']:.4f}"


def test_terminal_shows_findings_tables_and_the_file(run, checkpoints, tmp_path):
    code, out, error = run(f'"{checkpoints["learned"]}" --batches 2 --device cpu --html out/a.html')
    assert code == 0, error
    assert out.startswith("- In ")
    assert re.search(r"95% .* -> ", out)
    assert out.endswith("report: out/a.html\n")
    page = check_structure((tmp_path / "out" / "a.html").read_text())
    lines = [line.removeprefix("- ") for line in out.splitlines() if line.startswith("- ")]
    assert all(line in page.text["findings"] for line in lines)
    assert f"explainfix explain '{checkpoints['learned']}'".split("a<b>")[0] in page.text["origin"]
    assert f"torch {torch.__version__.split('+')[0]}" in page.text["origin"]


def test_before_and_after_training_stand_side_by_side(checkpoints):
    learned, fixed = (
        report_page(explain(ExplainConfig(model=str(checkpoints[i]), batches=2, device="cpu"), "")) for i in checkpoints
    )
    assert learned.count(">before training<") == learned.count(">after training<") == 4  # e_d and e_0, twice
    assert fixed.count(">before training<") == 2
    assert "Fixed filters do not change in training" in fixed
    assert "All spatial filters are fixed" in fixed


@pytest.mark.parametrize(
    "trained",
    [
        {"init": "learned", "memory": "recompute"},
        {"init": "ghaar4_s1", "learn_coeff": True, "amp": "bf16"},
        {"init": "dct2", "pointwise": True, "classes": 2, "limit": 40},
    ],
)
def test_all_that_can_be_trained_can_be_explained(tmp_path, trained):
    found = explain(ExplainConfig(model=str(train(tmp_path, **trained)), batches=2, device="cpu"), "")
    assert found.missing == {}
    page = check_structure(report_page(found))
    assert ("memory mode recompute" in page.text["network"]) == ("memory" in trained)
    assert ("2 mixed" in page.text["network"]) == ("learn_coeff" in trained)
    assert ("pointwise" in page.text["network"]) == ("pointwise" in trained)
    assert found.as_dict()["data"]["train"] == trained.get("limit", 90)


def test_findings_follow_the_numbers():
    low = explain(ExplainConfig(model="tiny", init="ghaar4_s1", size="1x12x12", classes=3, device="cpu"), "")
    assert findings(low)[0].startswith("In 2 of 2 spatial layers low frequencies (below half of the highest) have more")
    assert "of the energy; flat: 33%)" in findings(low)[1]
    flat = explain(ExplainConfig(model="tiny", init="dct2", size="1x12x12", classes=3, device="cpu"), "")
    shares = flat.spectra["filters"].low
    assert findings(flat)[0].startswith(f"In {sum(share > 1 / 3 + 1e-6 for share in shares.values())} of 2 spatial")
    ones = explain(ExplainConfig(model="tiny", init="identity", size="1x12x12", classes=3, device="cpu"), "")
    high = ones.spectra["filters"].low  # an impulse: 3 functions of 9 are low, and have less than a third of sum |c|
    assert findings(ones)[0].startswith(f"In {sum(share > 1 / 3 + 1e-6 for share in high.values())} of 2 spatial")
    said = " ".join(findings(flat))
    assert "In training" not in said
    assert "AUROC" not in said
    shown = next(pruned.report for pruned in flat.pruned if pruned.amount == 0.9)
    before, after = shown.parameters
    assert f"Without 90% of the spatial filters, {after / before:.0%} of the parameters" in said


def test_pruning_that_cuts_a_network_through_is_told():
    found = explain(ExplainConfig(model="efficientnet", init="dct2", size="1x32x32", classes=3, device="cpu"), "")
    said = findings(found)
    assert "Without 80% of the spatial filters no way is left through the network: the others go, too." in said
    assert any(line.startswith("Without 50% of the spatial filters,") for line in said)
    rows = {row[0]: row[1:] for row in check_structure(report_page(found)).tables["pruned"]}
    assert rows["99%"][0] == "100%"


# Models by name, and what cannot be made ----------------------------------------------------------------------------


def test_model_by_name_with_data(run, tmp_path):
    images(tmp_path / "some.npz")
    code, out, error = run("tiny --init dct2@0.5 --data some.npz --batches 2 --device cpu --json --seed 3")
    assert code == 0, error
    found = json.loads(out)
    assert found["missing"] == {}
    assert (found["init"], found["epochs"], found["weights"]) == ("dct2@0.5", None, "random, seed 3")
    assert set(found["spectra"]) == {"filters", "saliency"}
    page = check_structure((tmp_path / "report.html").read_text())
    assert "none by explainfix" in page.text["network"]


def test_model_by_name_without_data_says_what_it_lacks(run, tmp_path):
    code, out, error = run("tiny --size 2x12x10 --classes 4 --device cpu")
    assert code == 0, error
    assert "not in the report: saliency: no data was given" in out
    page = check_structure((tmp_path / "report.html").read_text())
    assert "random images of 2x12x10" in page.text["network"]
    assert "No test scores: no data was given" in page.text["network"]
    assert "No spectra with saliency: no data was given" in page.text["spectra"]
    assert "The network has no fixed layer" in page.text["summary"]
    assert "l1, the sum of |w|" in page.text["pruning"]


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_weights_are_read(run, tmp_path, suffix):
    model, path = Tiny(1, 3, 1), tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    code, out, error = run(f"tiny --size 1x12x12 --classes 3 --weights w.{suffix} --device cpu --json")
    assert code == 0, error
    found = Spectra.from_json(json.dumps(json.loads(out)["spectra"]["filters"]))
    assert torch.equal(found.ed["0"], explainsteer(model).ed["0"])


def test_weights_of_a_converted_model_are_loaded_after_converting(checkpoints):
    path = checkpoints["dct2"].parent / "model.pt"
    found = explain(
        ExplainConfig(model="tiny", init="dct2", seed=7, weights=path, size="1x12x12", classes=3, device="cpu"), ""
    )
    network = convert_like(path)
    assert torch.equal(found.spectra["filters"].ed["0"], explainsteer(network).ed["0"])


def convert_like(path: Path) -> nn.Module:
    network = Tiny(1, 3, 1)
    convert(network, "dct2", seed=1)
    load_weights(network, path)
    return network


def test_untraceable_model_gets_a_report_that_says_so(run, tmp_path):
    images(tmp_path / "some.npz")
    code, out, error = run("odd --data some.npz --batches 1 --device cpu --json")
    assert code == 0, error
    missing = json.loads(out)["missing"]
    page = check_structure((tmp_path / "report.html").read_text())
    for part in ("saliency", "memory", "pruning"):
        assert "\n" not in missing[part]
    assert missing["pruning"] in page.text["pruning"]
    assert missing["memory"] in page.text["memory"]
    assert missing["saliency"] in page.text["spectra"]
    code, out, error = run("odd --size 1x12x12 --classes 3 --device cpu --json")
    assert code == 0, error
    assert "torch.fx" in json.loads(out)["missing"]["pruning"] or "autograd" in json.loads(out)["missing"]["pruning"]


def test_model_without_spatial_convolutions(run, tmp_path):
    code, out, error = run("flat --size 1x4x4 --classes 3 --device cpu")
    assert code == 0, error
    page = check_structure((tmp_path / "report.html").read_text())
    assert "no spatial convolution" in page.text["spectra"]
    assert "no spatial convolution" in page.text["filters"]
    assert "no spatial convolution" in page.text["pruning"]


def test_names_are_escaped(run, tmp_path):
    assert shutil.copy(images(tmp_path / "some.npz"), tmp_path / f"{WEIRD}.npz")
    code, _, error = run(f'''"{WEIRD}" --data "{WEIRD}.npz" --batches 1 --device cpu''')
    assert code == 0, error
    text = (tmp_path / "report.html").read_text()
    page = check_structure(text)
    assert WEIRD in page.text["network"]
    assert shlex.quote(WEIRD) in page.text["origin"]
    assert "<b>" not in text


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Missing argument '.*'"),
        ("no.pt", "no.pt not found: expected a checkpoint"),
        ("STATE", "model.pt is not a checkpoint of explainfix train: expected OUT/NETWORK/checkpoint.pt"),
        ("IMAGES", "images.npz cannot be read"),
        ("tinny", "model must be bottleneck, .*, got 'tinny'; did you mean tiny?"),
        ("runs/demo", "model must be bottleneck, .*, got 'runs/demo'"),
        ("timm:resnet1", "unknown timm model 'resnet1'; nearest: resnet"),
        ("CHECKPOINT --init dct2", "init is of a model's name, and MODEL is a file"),
        ("CHECKPOINT --weights STATE", "weights is of a model's name, and MODEL is a file"),
        ("CHECKPOINT --size 28", "size is of a model's name"),
        ("CHECKPOINT --data no.npz", "no.npz not found: expected an .npz file"),
        ("CHECKPOINT --batches 0", "batches must be at least 1, got 0"),
        ("CHECKPOINT --device gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("CHECKPOINT --html IMAGES", "images.npz is there, and is no report: choose another --html"),
        ("CHECKPOINT --html FOLDER", "is there, and is no report"),
        ("CHECKPOINT --html IMAGES/x.html", "html must be in a folder, .*images.npz is a file"),
        ("tiny --data IMAGES --size 28", "size is that of the data: leave it out, or data"),
        ("tiny --size big", "size must be PIXELS or CHANNELSxHEIGHTxWIDTH, such as 1x28x28, got 'big'"),
        ("tiny --size 0", "size must be PIXELS or"),
        ("tiny --classes 0", "classes must be at least 1, got 0"),
        ("tiny --seed -1", "seed must be from 0"),
        ("tiny --init dct3 --size 12", "unknown init 'dct3'; nearest: dct2"),
        ("tiny --weights no.pt --size 12", "no.pt not found"),
        ("tiny --weights no.safetensors --size 12", "no.safetensors not found"),
        ("tiny --weights IMAGES --size 12", "images.npz cannot be read"),
        ("tiny --weights STATE --size 12", "model.pt is of a converted model and this one is plain"),
        ("tiny --weights STATE --init dct2 --size 12", "model.pt does not fit the model: .*size mismatch"),
        ("timm:vit_tiny_patch16_224 --size 30", "cannot take images of 3x30x30"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, checkpoints, tmp_path, line, message):
    folder = checkpoints["dct2"].parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    places = {"CHECKPOINT": checkpoints["dct2"], "STATE": folder / "model.pt", "FOLDER": folder}
    places["IMAGES"] = folder.parents[1] / "images.npz"
    for word, place in places.items():
        line = line.replace(word, f'"{place}"')
    code, out, error = run(line)
    assert (code, out) == (2, ""), error
    (told,) = error.splitlines()
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), told), told
    assert told.startswith("explainfix: ")
    assert not list(tmp_path.iterdir())
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_files_that_are_no_state_dict_are_told(run, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "three.pt")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name, message in (("three.pt", "three.pt is no state_dict"), ("junk.safetensors", "cannot be read")):
        code, _, error = run(f"tiny --weights {name} --size 1x12x12 --device cpu")
        assert code == 2
        assert message in error
    assert not (tmp_path / "report.html").exists()


def test_only_a_former_report_is_replaced(run, tmp_path):
    line = "flat --size 1x4x4 --classes 3 --device cpu"
    assert run(line)[0] == run(line)[0] == 0
    (tmp_path / "report.html").write_text("<html>mine</html>")
    code, _, error = run(line)
    assert code == 2
    assert "report.html is there, and is no report" in error
    assert (tmp_path / "report.html").read_text() == "<html>mine</html>"


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "explainfix_ext.commands.webpage.page")
    monkeypatch.delitem(sys.modules, "explainfix_ext.commands.webpage.pictures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="a report needs matplotlib: pip install"):
        check_report(tmp_path / "report.html")


def test_several_processes_are_refused(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, _, error = run("tiny")
    assert code == 2
    assert "explain runs in one process" in error


# The builder --------------------------------------------------------------------------------------------------------


def test_builder_escapes_text_and_not_markup():
    assert html.element("p", "<b>", title='"&') == '<p title="&quot;&amp;">&lt;b&gt;</p>'
    assert html.element("p", html.element("b", 1)) == "<p><b>1</b></p>"
    assert html.element("meta", charset="utf-8", class_=None) == '<meta charset="utf-8">'
    assert html.items(["<", "x"]) == "<ul><li>&lt;</li><li>x</li></ul>"
    assert "--share:1.0000" in html.bar("2", 2.0)
    table = html.table("t", "<c>", ("a", "b"), [("x", "1"), ("sum", "1")], foot=1)
    assert '<th scope="row">sum</th>' in table.partition("<tfoot>")[2]
    assert "&lt;c&gt;" in table


# In a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(checkpoints) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", Tiny)
        path = checkpoints["dct2"].parent / "report.html"
        path.write_text(
            report_page(explain(ExplainConfig(model=str(checkpoints["dct2"]), batches=2, device="cpu"), ""))
        )
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium here (extra `test`)")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


def show(browser: Any, report: Path, width: int = 1280, scheme: str = "light") -> None:
    """Load the page in a window of this width, for a reader who likes light or dark pages."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(report.as_uri())


def test_browser_loads_nothing_else_and_complains_of_nothing(browser, report):
    browser.get_log("browser"), browser.get_log("performance")
    show(browser, report)
    assert browser.title == "tiny, dct2: ExplainFix report"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} == {report.as_uri()}
    entries = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in entries if not name.startswith("data:")] == []


def test_browser_would_load_nothing_even_if_asked(browser, report, tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    (tmp_path / "bad.html").write_text(report.read_text().replace("<main>", '<main><img alt="" src="x.png">'))
    show(browser, tmp_path / "bad.html")
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_light_and_dark_pages_differ_and_text_stays_legible(browser, report):
    seen = {}
    for scheme in ("light", "dark"):
        show(browser, report, scheme=scheme)
        colour = "return getComputedStyle(document.querySelector('{}')).{}"
        paper = browser.execute_script(colour.format("html", "backgroundColor"))
        labels = browser.execute_script(colour.format("svg text", "fill"))
        ink = browser.execute_script(colour.format("html", "color"))
        assert labels == ink
        assert abs(brightness(paper) - brightness(ink)) > 150
        seen[scheme] = brightness(paper), corner(browser.get_screenshot_as_png())
    (light, light_pixel), (dark, dark_pixel) = seen["light"], seen["dark"]
    assert light > 200 > 60 > dark
    assert min(light_pixel) > 200 > 60 > max(dark_pixel)


def brightness(colour: str) -> float:
    """Mean of the numbers in "rgb(1, 2, 3)"."""
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def corner(png: bytes) -> list[int]:
    """The first pixel of a picture."""
    import io

    from matplotlib.image import imread

    return (imread(io.BytesIO(png), format="png")[0, 0, :3] * 255).round().astype(int).tolist()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(browser, report, width):
    show(browser, report, width)
    found = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert found[0] <= found[1] == width
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, p, li, dd, figcaption, .scroll')]"
        ".filter(e => e.getBoundingClientRect().right > window.innerWidth).map(e => e.outerHTML.slice(0, 80))"
    )
    assert boxes == []


def test_page_prints_in_light_colours_even_for_a_dark_reader(browser, report, tmp_path):
    show(browser, report, scheme="dark")
    pdf = base64.b64decode(browser.print_page())
    assert pdf.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 3 <= pages <= 12
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    paper = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert brightness(paper) > 200
