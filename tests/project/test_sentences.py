"""Docstrings begin with a sentence: a function's with a verb ("Returns ..."), and none with a word that has no subject.

Every docstring of the package counts, private ones too. What cannot be told by rule, such as whether a class's
docstring has a verb, is for the reader.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "explainfix_ext"
# What `explainfix COMMAND --help` prints says what to do, as help does everywhere: "Train a network ...".
COMMANDS = {"bench", "demo", "explain", "export", "inits", "memory", "prune", "status", "train"}
# Prepositions and question words: "Of a panel, in inches.", "How many are kept.", "What was found."
NO_SUBJECT = re.compile(
    "As|At|Between|By|For|From|How|In|Into|Like|Of|On|Per|Than|To|What|When|Where|Whether|Which|Who|Whose|Why|With"
)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(path: Path) -> Iterator[tuple[str, Documented, str]]:
    """Yields (where, node, docstring) for the module and every class and function in it that has one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            name = "the module" if isinstance(node, ast.Module) else node.name
            yield f"{path.name}: {name}", node, text


def is_property(node: Documented) -> bool:
    names = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
    return any(name.endswith("property") for name in names)


def complaint(node: Documented, text: str) -> str:
    """What is wrong with the first sentence; "" if nothing is."""
    first = re.split(r"[\s,:;.]", text, maxsplit=1)[0]
    if NO_SUBJECT.fullmatch(first):
        return f"begins with {first!r}"
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node)
    if is_function and not re.fullmatch(r"[A-Z][a-z]*s", first):
        return f"does not begin with what the function does, such as Returns, but with {first!r}"
    return ""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_begin_with_a_sentence(path: Path) -> None:
    documented = list(docstrings(path))
    if path.parent.name == "commands":
        documented = [entry for entry in documented if getattr(entry[1], "name", "") not in COMMANDS]
    found = [(where, complaint(node, text)) for where, node, text in documented]
    assert found, f"{path.name} has no docstring"
    assert [f"{where} {what}" for where, what in found if what] == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ('"""Of the model, in inches."""', "begins with 'Of'"),
        ('class A:\n    """What it is."""', "begins with 'What'"),
        ('class A:\n    """A is a letter."""', ""),
        (
            'def f():\n    """The size of a thing."""',
            "does not begin with what the function does, such as Returns, but with 'The'",
        ),
        ('def f():\n    """Returns the size."""', ""),
        ('@property\ndef f(self):\n    """The size of a thing."""', ""),
        ('@property\ndef f(self):\n    """In inches."""', "begins with 'In'"),
    ],
)
def test_this_test_can_fail(source: str, what: str) -> None:
    tree = ast.parse(source)
    node = tree if ast.get_docstring(tree) else tree.body[0]
    assert isinstance(node, Documented)
    assert complaint(node, ast.get_docstring(node) or "") == what
