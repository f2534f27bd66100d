"""What a Markdown document of the project says, taken apart: its blocks, commands, files, links and names."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import explainfix_ext as efx

from .paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FOLDERS = ("bench", "csrc", "docs", "examples", "explainfix_ext", "tests", ".ci")
SOURCES = (".py", ".sh", ".md", ".h", ".cpp", ".cu", ".cuh", ".toml")
RUNNERS = {"bash", "python", "python3", "pytest"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def imported(block: str) -> set[str]:
    """Other people's packages that a block of Python imports."""
    nodes = list(ast.walk(ast.parse(block)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} - {"explainfix_ext"}


def quoted(text: str) -> list[str]:
    """What stands in `backticks`, outside of blocks."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", text)]


def commands(text: str) -> list[list[str]]:
    """The words of every command in the bash blocks, without comments and variables that are set before it."""
    lines = "".join(blocks(text, "bash")).replace("\\\n", "").splitlines()
    parts = [part for line in lines for part in line.split("&&")]
    found = [shlex.split(re.sub(r"^\s*([A-Z_]+=\S* )*", "", part), comments=True) for part in parts]
    return [words for words in found if words]


def wrong_command(words: list[str], whole: bool = True) -> str | None:
    """Why a command cannot be run. Nothing is: scripts are looked up, options of `explainfix` are parsed. `whole`: also
    that none is missing."""
    program, *rest = words
    if program == "explainfix":
        return wrong_options(rest, whole)
    scripts = [word for word in rest if program in RUNNERS and ("/" in word or word.endswith(SOURCES))]
    gone = [script for script in scripts if not (ROOT / script.split("::")[0]).exists()]
    return f"{gone[0]} does not exist" if gone else None


def wrong_options(words: list[str], whole: bool) -> str | None:
    typer = pytest.importorskip("typer", reason='the command line needs the extra "demo"')
    from explainfix_ext.commands.app import app

    group = typer.main.get_command(app)
    if not words or words == ["--help"]:
        return None
    name, *options = words
    if name in {option for parameter in group.params for option in parameter.opts}:
        return None
    if name not in group.commands:
        return f"explainfix has no command {name}"
    command = group.commands[name]
    if "--help" in options:
        return None
    if not whole:
        known = {option for parameter in command.params for option in parameter.opts}
        unknown = [word for word in options if word.startswith("--") and word not in known]
        return f"explainfix {name} has no option {unknown[0]}" if unknown else None
    try:
        command.make_context(name, options, obj=[])  # parses, and runs nothing
    except Exception as error:
        return f"explainfix {name}: {error}"
    return None


def files_named(text: str) -> list[str]:
    """Source files and folders of this repository, as far as a word in backticks looks like one."""
    words = {word for words in map(str.split, quoted(text)) for word in words}
    return sorted(
        w for w in words if (w.endswith(SOURCES) and w not in SOURCES) or ("/" in w and w.split("/")[0] in FOLDERS)
    )


def exists(name: str) -> bool:
    """From the root, from the package, or anywhere by its last name, where the folder was named before."""
    if (ROOT / name).exists() or (ROOT / "explainfix_ext" / name).exists():
        return True
    return "/" not in name and any(next((ROOT / folder).rglob(name), None) for folder in FOLDERS)


def links(text: str) -> list[tuple[str, str]]:
    """Paths and anchors of links and pictures within the repository."""
    text = re.sub(r"```.*?```|`[^`\n]+`", "", text, flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [(path, anchor) for path, _, anchor in (link.partition("#") for link in found if "://" not in link)]


def anchors(text: str) -> set[str]:
    """Of headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(text: str, document: Path) -> Iterator[str]:
    """Links that lead nowhere: to no file, or to no heading of it."""
    for path, anchor in links(text):
        target = document.parent / path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text() if path else text)):
            yield f"{path}#{anchor}" if anchor else path


def missing_name(name: str) -> str | None:
    """The part of a dotted name of ours that is not there."""
    module, parts = efx, name.split(".")[1:]
    for at, part in enumerate(parts):
        if not hasattr(module, part):
            try:
                importlib.import_module(".".join(["explainfix_ext", *parts[: at + 1]]))
            except ImportError:
                return f"{name}: no {part}"
        module = getattr(module, part)
    return None
