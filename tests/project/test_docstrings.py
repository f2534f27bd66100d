"""Every public name says what it does: each parameter by name, what it raises, and, at top level, an example that runs.

Public is what users import: `PUBLIC_MODULES` below. What a public function returns to them counts too (`RETURNED`). All
else is the package's inside: the commands (their --help is tested elsewhere), training/, benchmarks/, plans, kernels.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.documented import MODULES
from torch import nn

import explainfix_ext as efx
from explainfix_ext.conversion.report import ConvertedLayer
from explainfix_ext.filters.random_streams import Stream
from explainfix_ext.memory.count import Usage
from explainfix_ext.nn.summary import LayerSummary
from explainfix_ext.prune.costs import LayerCost

# registry: how a user adds an initialisation of their own; explain_plots: pictures (needs matplotlib).
PUBLIC_MODULES = ("", "functional", "memory", "prune", "registry", "explain_plots", "onnx")
RETURNED = (ConvertedLayer, LayerCost, LayerSummary, Stream, Usage)
ANYWHERE = {"self", "cls", "args", "kwargs"}


def public_names(module: Any) -> dict[str, Any]:
    """Of `__all__`, or else the functions and classes that the module defines."""
    if hasattr(module, "__all__"):
        names = module.__all__
    else:
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
        names = [n for n in own if not n.startswith("_")]
    things = {name: getattr(module, name) for name in names}
    return {name: thing for name, thing in things.items() if inspect.isfunction(thing) or inspect.isclass(thing)}


def top_level() -> dict[str, Any]:
    """Qualified name -> function or class; one that several modules offer is there once."""
    found: dict[int, tuple[str, Any]] = {}
    for short in PUBLIC_MODULES:
        full = f"explainfix_ext.{short}".rstrip(".")
        if short == "explain_plots" and importlib.util.find_spec("matplotlib") is None:
            continue
        for name, thing in public_names(importlib.import_module(full)).items():
            found.setdefault(id(thing), (f"{full}.{name}".removeprefix("explainfix_ext."), thing))
    return dict(found.values())


def members(cls: type) -> Iterator[tuple[str, Callable]]:
    """The public methods and properties that a class of ours defines, those it overrides of torch's apart."""
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(function) and not name.startswith("_") and not hasattr(nn.Conv2d, name):
            yield name, function


def parameters(thing: Any) -> list[str]:
    """Names that a caller gives."""
    found = inspect.signature(thing).parameters.values()
    return [p.name for p in found if p.name not in ANYWHERE and p.kind is not p.VAR_KEYWORD]


def raised(function: Callable) -> list[str]:
    """Exceptions that the function itself raises by name, or makes by a function such as `unknown_name`.

    Those that its calls raise are not followed.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    nodes = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    makers = {name: value for name, value in function.__globals__.items() if inspect.isfunction(value)}
    return sorted(str(makers[name].__annotations__["return"]) if name in makers else name for name in names)


def complaints(name: str, thing: Any, *, example: bool) -> list[str]:
    """What the docstring of a function or class lacks."""
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    if not text or text.startswith(f"{name.split('.')[-1]}("):  # what @dataclass writes
        return [f"{name} has no docstring"]
    missing = [f"{name} does not document {p!r}" for p in parameters(thing) if not documents(text, p)]
    checked = getattr(thing, "__post_init__", None) if inspect.isclass(thing) else thing
    errors = raised(checked) if checked else []
    missing += [f"{name} does not say when it raises {e}" for e in errors if not says_raises(text, e)]
    if example and ">>>" not in text:
        missing.append(f"{name} has no example")
    return missing


def documents(text: str, parameter: str) -> bool:
    """Under Args or Attributes; or where there is neither, in running text; or quoted, `parameter`."""
    if not re.search(r"^ *(Args|Attributes):", text, flags=re.M):
        return bool(re.search(rf"\b{parameter}\b", text))
    return bool(re.search(rf"^ +([*\w]+, )*{parameter}(, [*\w]+)*:|`{parameter}\b", text, flags=re.M))


def says_raises(text: str, error: str) -> bool:
    _, _, after = text.partition("Raises")
    return error in after


TOP = top_level()
MEMBERS = {
    f"{cls_name}.{name}": function
    for cls_name, cls in [*TOP.items(), *((c.__name__, c) for c in RETURNED)]
    if inspect.isclass(cls)
    for name, function in members(cls)
}


@pytest.mark.parametrize("name", TOP)
def test_functions_and_classes(name: str) -> None:
    assert complaints(name, TOP[name], example=True) == []


@pytest.mark.parametrize("name", MEMBERS)
def test_methods_and_properties(name: str) -> None:
    assert complaints(name, MEMBERS[name], example=False) == []


@pytest.mark.parametrize("cls", RETURNED, ids=lambda cls: cls.__name__)
def test_what_public_functions_return(cls: type) -> None:
    assert complaints(cls.__name__, cls, example=False) == []


@pytest.mark.parametrize("short", PUBLIC_MODULES)
def test_modules(short: str) -> None:
    assert importlib.import_module(f"explainfix_ext.{short}".rstrip(".")).__doc__


def test_examples_are_run() -> None:
    """By test_package.py, which lists modules."""
    homes = {thing.__module__.removeprefix("explainfix_ext.") for thing in TOP.values()}
    assert homes - set(MODULES) == set()


def test_what_is_public() -> None:
    """A guard against an empty search."""
    assert {"FixedConv2d", "convert", "memory.flatten", "registry.register", "explain_plots.plot_e0"} <= set(TOP)
    assert {"FixedConv2d.from_conv2d", "FilterBank.weight", "PruneReport.time", "Spectra.centre"} <= set(MEMBERS)
    assert "FixedConv2d.cuda" not in MEMBERS
    assert {name for name in efx.__all__ if name[0].isupper()} <= set(TOP)


def documented(x: int, size: int = 3) -> int:
    """Twice `x`; `size` is of no use.

    Raises:
        ValueError: x is negative.

    Example:
        >>> documented(1)
        2
    """
    if x < 0:
        raise ValueError(f"x must be positive, got {x}")
    return 2 * x


def undocumented(x: int) -> int:
    return x


def forgets_a_parameter(x: int, size: int = 3) -> int:
    """Twice `x`. Sizes are not meant by `size_of`.

    Example:
        >>> forgets_a_parameter(1)
        2
    """
    return 2 * x


def forgets_its_error(x: int) -> int:
    """`x`, if it is no ValueError."""
    if x < 0:
        raise ValueError("x")
    return x


def made_error() -> ValueError:
    return ValueError("x")


def forgets_a_made_error(x: int) -> int:
    """Twice `x`.

    Example:
        >>> forgets_a_made_error(1)
        2
    """
    if x < 0:
        raise made_error()
    return 2 * x


@dataclasses.dataclass
class Bare:
    x: int


class Child(efx.FixedConv2d):
    @property
    def extra(self) -> int:
        return 1

    def forward(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (documented, []),
        (undocumented, ["it has no docstring"]),
        (forgets_a_parameter, ["it does not document 'size'"]),
        (forgets_its_error, ["it does not say when it raises ValueError", "it has no example"]),
        (forgets_a_made_error, ["it does not say when it raises ValueError"]),
        (Bare, ["Bare has no docstring"]),
        (Child, ["it has no docstring"]),  # its parent's does not count
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_this_test_can_fail(thing: Any, expected: list[str]) -> None:
    name = "Bare" if thing is Bare else "it"
    assert complaints(name, thing, example=True) == expected


def test_properties_of_a_subclass_are_seen_and_torchs_are_not() -> None:
    assert [name for name, _ in members(Child)] == ["extra"]


def test_a_made_module_is_searched() -> None:
    made = types.ModuleType("made")
    exec("def shown(x): return x\ndef _hidden(x): return x\nfrom math import sqrt", made.__dict__)
    assert made.__doc__ is None
    found = public_names(made)
    assert [complaints(name, thing, example=True) for name, thing in found.items()] == [["shown has no docstring"]]
    made.__all__ = ["_hidden"]
    assert list(public_names(made)) == ["_hidden"]
