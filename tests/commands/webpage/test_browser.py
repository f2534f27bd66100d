"""The page in a headless Chromium, where there is one: it loads nothing, and is legible, narrow, dark or on paper."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer", reason='needs the extra "demo"')
pytest.importorskip("rich", reason='needs the extra "demo"')
pytest.importorskip("timm", reason='needs the extra "demo"')
pytest.importorskip("matplotlib", reason='needs the extra "demo"')
pytest.importorskip("safetensors", reason='needs the extra "demo"')

from support.tiny_run import Tiny

from explainfix_ext.commands.webpage.page import report_page
from explainfix_ext.commands.webpage.run import explain
from explainfix_ext.commands.webpage.subject import ExplainConfig
from explainfix_ext.training import models

pytestmark = pytest.mark.filterwarnings("error:constrained_layout")


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
    assert 3 <= pages <= 14
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    paper = browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert brightness(paper) > 200
