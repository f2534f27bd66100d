"""The API pages of the site name every public object, by a path that mkdocstrings finds, and docstrings fit them."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from typing import Any

import pytest
from support.paths import ROOT

import explainfix_ext as efx

PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
PUBLIC_MODULES = ("", "functional", "memory", "prune", "registry", "explain_plots", "onnx")
# They compute nothing that PyTorch could, or draw.
WITHOUT_EQUIVALENT = {"export", "find_initializer", "initializers", "library", "register", "status", "summary", "tune"}


def directives() -> list[str]:
    """The paths after `:::`."""
    return [path for page in PAGES for path in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.M)]


def find(path: str) -> Any:
    """The object of a dotted path: the longest part that is a module is imported, the rest are attributes.

    Where a module and a name share a path, the documentation shows the module, for it does not run the package.
    """
    parts = path.split(".")
    cut = max(i for i in range(1, len(parts) + 1) if is_module(parts[:i]))
    thing: Any = importlib.import_module(".".join(parts[:cut]))
    for name in parts[cut:]:
        thing = getattr(thing, name)
    return thing


def is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def shown() -> list[Any]:
    """What the pages show: of a module, all that its `__all__` names."""
    found = [find(path) for path in directives()]
    modules = [thing for thing in found if isinstance(thing, types.ModuleType)]
    rest = [thing for thing in found if not isinstance(thing, types.ModuleType)]
    return rest + [getattr(module, name) for module in modules for name in module.__all__]


def public() -> dict[str, Any]:
    """Name -> function or class of the public modules."""
    modules = [importlib.import_module(f"explainfix_ext.{short}".rstrip(".")) for short in PUBLIC_MODULES]
    things = {name: getattr(module, name) for module in modules for name in module.__all__}
    return {name: thing for name, thing in things.items() if inspect.isfunction(thing) or inspect.isclass(thing)}


def test_every_public_name_is_on_a_page() -> None:
    pytest.importorskip("matplotlib", reason="explain_plots needs the extra `demo`")
    there = {id(thing) for thing in shown()}
    assert [name for name, thing in public().items() if id(thing) not in there] == []
    assert set(efx.__all__) <= {"functional", *public()}


def test_no_page_shows_what_is_not_there_or_twice() -> None:
    paths = directives()
    assert len(paths) == len(set(paths)) > 30
    assert all(find(path).__doc__ for path in paths)


def test_a_module_of_the_same_name_is_seen() -> None:
    assert isinstance(find("explainfix_ext.memory.flatten"), types.ModuleType)
    assert find("explainfix_ext.memory.flatten.flatten") is importlib.import_module("explainfix_ext.memory").flatten


def test_functions_have_the_equivalent_pytorch() -> None:
    pytest.importorskip("matplotlib", reason="explain_plots needs the extra `demo`")
    functions = {n: f for n, f in public().items() if inspect.isfunction(f) and not n.startswith("plot_")}
    without = {name for name, function in functions.items() if "equivalent PyTorch" not in (function.__doc__ or "")}
    assert without == WITHOUT_EQUIVALENT


def test_docstrings_have_the_sections_that_mkdocstrings_knows() -> None:
    """It would print `Example:` as quoted text, and a pair of attributes as an attribute and its type."""
    for name, thing in public().items():
        text = inspect.getdoc(thing) or ""
        assert not re.search(r"^(Example|Equivalent)\b.*:$", text, flags=re.M), name
        attributes = re.search(r"^Attributes:\n((?: .*\n|\n)*)", text, flags=re.M)
        assert not re.search(r"^ {4}\w+, .*?:", attributes[1] if attributes else "", flags=re.M), name
        words = re.sub(r"`[^`]*`", "", text.partition("Examples:")[0])
        assert not re.search(r"<[A-Za-z]", words), f"{name}: reads as HTML"
