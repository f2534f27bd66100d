"""Makes the markup of a web page in one file, which loads nothing. `page`, `tables` and `pictures` call it.

Text is escaped everywhere, unless it is `Html`, which is markup already.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GENERATOR = "explainfix explain"  # marks a page as a report, which a later one may replace
# Forbids the page to load anything, even if a later change of this file asks for it: the browser then complains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_VOID = ("br", "link", "meta")
_PX_PER_POINT = (1.0, 1.6)  # least and most scale at which a picture's labels of 7 points are good to read


class Html(str):
    """Marks a str as markup, which goes into the page as it is; any other str is text."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Turns text into markup, for use between tags and in attributes.

    Examples:
        >>> escape("a < b"), escape(Html("<b>"))
        ('a &lt; b', '<b>')
    """
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """Returns <tag attributes>children</tag>.

    In names of attributes "_" becomes "-", and one at the end is dropped (`class_`). An attribute that is None is left
    out.

    Examples:
        >>> element("p", "1 < 2", class_="note", aria_label=None)
        '<p class="note">1 &lt; 2</p>'
    """
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value is not None}
    head = " ".join([f"<{tag}", *(f'{name}="{escape(value)}"' for name, value in given.items())]) + ">"
    return Html(head if tag in _VOID else f"{head}{join(children)}</{tag}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Returns the markup of all parts, with the text `between` between each two."""
    return Html(escape(between).join(map(escape, parts)))


def items(lines: Iterable[object]) -> Html:
    """Returns a bulleted list, one point per line."""
    return element("ul", *(element("li", line) for line in lines))


def note(text: object) -> Html:
    """Returns a highlighted paragraph, which says why something is missing."""
    return element("p", text, class_="note")


def bar(text: object, share: float) -> Html:
    """Returns a number with a bar below it, whose length is `share`, clipped to 0 ... 1."""
    return element("span", text, class_="bar", style=f"--share:{min(max(share, 0), 1):.4f}")


def table(
    name: str,
    caption: object,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    text: int = 1,
    foot: int = 0,
) -> Html:
    """Returns a table in a box of its own, which scrolls if the page is narrow. The first cell of a row is its heading.

    Args:
        name: id of the table: letters, digits and hyphens; unique in the page.
        caption: what is shown, with its units.
        head: headings of the columns.
        rows: cells, as many per row as `head` has; text or markup.
        text: number of columns, from the left, that hold words; the others hold numbers.
        foot: number of rows, from the end, that are sums.

    Examples:
        >>> table("t", "Sizes", ("layer", "bytes"), [("a", 3)]).count("<th ")
        3
    """
    kinds = ["word" if i < text else "number" for i in range(len(head))]
    titles = [element("th", cell, scope="col", class_=kind) for cell, kind in zip(head, kinds, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [element("td", cell, class_=kind) for cell, kind in zip(rest, kinds[1:], strict=True)]
        lines.append(element("tr", element("th", first, scope="row"), *cells))
    cut = len(lines) - foot
    parts = [element("thead", element("tr", *titles)), element("tbody", *lines[:cut])]
    parts += [element("tfoot", *lines[cut:])] if foot else []
    return _captioned(name, caption, element("table", *parts, aria_labelledby=f"{name}-caption"), first=True)


def figure(name: str, picture: Figure, alt: str, caption: object) -> Html:
    """Returns a picture of matplotlib as SVG within the page, so that its text has the page's font and colour.

    Args:
        name: id of the figure, unique in the page.
        picture: what to draw.
        alt: what is to be seen, for readers who do not see it.
        caption: what is shown, with its units.
    """
    return _captioned(name, caption, _svg(picture, name, alt), first=False)


def _captioned(name: str, caption: object, content: Html, *, first: bool) -> Html:
    words = element("figcaption", caption, id=f"{name}-caption")
    box = element("div", content, class_="scroll", role="group", tabindex=0, aria_labelledby=f"{name}-caption")
    return element("figure", *((words, box) if first else (box, words)), id=name)


def _svg(picture: Figure, name: str, alt: str) -> Html:
    from matplotlib import rc_context

    file = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        picture.savefig(file, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.03)
    text = file.getvalue()
    _, opening, text = re.split(r"(<svg[^>]*>)", text, maxsplit=1)
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = _own_ids(text.replace("xlink:href", "href").replace("#000000", "currentColor"), name)
    viewbox = re.findall(r'viewBox="([^"]*)"', opening)[0]
    least, most = (round(float(viewbox.split()[2]) * px) for px in _PX_PER_POINT)
    size = f"min-width:{least}px;max-width:{most}px"
    return Html(f'<svg viewBox="{viewbox}" role="img" aria-label="{escape(alt)}" style="{size}">{text}')


def _own_ids(svg: str, name: str) -> str:
    """Makes the ids of a picture unique in the page, and drops those that nothing refers to."""
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)


def section(name: str, title: str, *parts: object) -> Html:
    """Returns a part of the page under a heading, which the table of contents links to."""
    return element(
        "section", element("h2", title, id=f"{name}-title"), *parts, id=name, aria_labelledby=f"{name}-title"
    )


def page(title: str, lead: object, sections: dict[str, tuple[str, Sequence[object]]], generator: str) -> Html:
    """Returns the whole page.

    Args:
        title: title of the page and of the browser's tab.
        lead: what stands below the title.
        sections: id -> (heading, parts), in order.
        generator: name of the program that made it; `explainfix explain` looks for it before it replaces a file.

    Examples:
        >>> text = page("Filters", "3x3", {"one": ("One", [note("nothing")])}, "a test")
        >>> text.startswith("<!DOCTYPE html>"), "<script" in text
        (True, False)
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=generator),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Html(Path(__file__).with_name("report.css").read_text())),
    )
    links = [element("a", heading, href=f"#{name}") for name, (heading, _) in sections.items()]
    parts = [section(name, heading, *content) for name, (heading, content) in sections.items()]
    contents = element("nav", *links, aria_label="Contents")
    body = element("body", element("header", element("h1", title), lead, contents), element("main", *parts))
    return Html(f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n")
