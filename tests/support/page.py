"""Networks to explain, and a reader of the report of `explainfix explain` that checks what must hold of every page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext.commands.webpage.explained import Explained
from explainfix_ext.commands.webpage.run import explain
from explainfix_ext.commands.webpage.subject import ExplainConfig

from .tiny_run import Tiny

SECTIONS = ["network", "findings", "spectra", "frequencies", "filters", "summary", "memory", "pruning", "origin"]
WITH_DATA = ["predictions", "channels", "groups", "directions"]  # all of them, or without data none, after the filters


class Page(HTMLParser):
    """What a page consists of: tags with attributes, tables by caption, text by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.section = self.figure = ""
        self.cell = self.in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.in_style = tag == "style"
        if tag == "section":
            self.section = str(found["id"])
        if tag == "figure":
            self.figure = str(found["id"])
        if tag == "tr":
            self.tables.setdefault(self.figure, []).append([])
        if tag in ("td", "th"):
            self.tables[self.figure][-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")
        self.in_style = False

    def handle_data(self, data: str) -> None:
        if not self.in_style:
            self.text[self.section] = self.text.get(self.section, "") + data
        if self.cell:
            self.tables[self.figure][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_structure(text: str) -> Page:
    """What must hold of every page."""
    page = Page(text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    place = SECTIONS.index("filters") + 1
    assert [a["id"] for a in page.all("section")] in (SECTIONS, [*SECTIONS[:place], *WITH_DATA, *SECTIONS[place:]])
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("title")) == len(page.all("h1")) == 1
    assert not page.all("script")
    assert not page.all("iframe")
    assert all(a.get("alt") and a["src"].startswith("data:") for a in page.all("img"))
    assert all(a["role"] == "img" and a["aria-label"] for a in page.all("svg"))
    for attribute in ("src", "href", "xlink:href", "srcset", "data", "action"):
        assert all(a[attribute].startswith(("data:", "#")) for _, a in page.tags if attribute in a), attribute
    references = re.findall(r"url\(([^)]*)\)", text) + [a["href"] for a in page.all("use") + page.all("a")]
    assert all(r.startswith("#") and r[1:] in ids for r in references)
    assert "@import" not in text
    assert "http:" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    figures, captions = page.all("figure"), page.all("figcaption")
    assert len(figures) == len(captions)
    assert all(a["aria-labelledby"] in ids for _, a in page.tags if "aria-labelledby" in a)
    return page


WEIRD = "a<b>&'c"  # in names of folders and models


class Untraceable(Tiny):
    """Its forward branches on values, and works in numpy, out of sight of autograd: nothing can follow its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(super().forward(x + 1 if x.sum() > 0 else x).detach().numpy())


class Flat(nn.Sequential):
    """No spatial convolution."""

    def __init__(self, in_channels: int, num_classes: int, scale: float) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(num_classes))


def explained_by_name(**given: Any) -> Explained:
    """Explains the tiny network without data; `given` are fields of `ExplainConfig`."""
    return explain(ExplainConfig(model="tiny", device="cpu", **({"size": "1x12x12", "classes": 3} | given)), "")
