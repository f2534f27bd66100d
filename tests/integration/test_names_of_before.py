"""Names and calls of before the code was sorted into rooms still work: those that are public, and those in pickles.

tests/data/before_house/public.json was written by the package of that time: the arguments of every public function,
the methods of every public class, the options of every command. Its README has the code.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import explainfix_ext as efx

BEFORE = Path(__file__).resolve().parents[1] / "data" / "before_house"
# "auto" in place of "dct2", and the granularity that its filters need; see the changelog.
NEW_DEFAULTS = {("FixedConv2d", "init"), ("convert", "init"), ("channelprune", "granularity")}
PUBLIC = json.loads((BEFORE / "public.json").read_text())


def check_arguments(function: Any, before: dict[str, list[Any]], name: str) -> None:
    """Every call of before is one now: same positions, same keywords, same defaults; what is new has a default."""
    now = inspect.signature(function).parameters
    places = [argument for argument, (kind, _) in before.items() if kind.startswith("POSITIONAL")]
    assert list(now)[: len(places)] == places, name
    for argument, (kind, default) in before.items():
        assert argument in now, f"{name}: {argument}"
        assert now[argument].kind.name == kind, f"{name}: {argument}"
        if default is not None and (name, argument) not in NEW_DEFAULTS:
            assert repr(now[argument].default) == default, f"{name}: {argument}"
    added = [value for argument, value in now.items() if argument not in before]
    assert all(value.default is not value.empty or value.kind.name.startswith("VAR") for value in added), name


@pytest.mark.parametrize("name", PUBLIC["functions"])
def test_public_name(name):
    value = getattr(efx, name)
    assert name in efx.__all__
    check_arguments(value, PUBLIC["functions"][name], name)
    for member, arguments in PUBLIC["classes"].get(name, {}).items():
        if arguments is not None:
            check_arguments(getattr(value, member), arguments, f"{name}.{member}")
        elif not any(member in vars(cls).get("__annotations__", {}) for cls in value.__mro__):
            assert hasattr(value, member), f"{name}.{member}"


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("explainfix_ext", "functional"),
        ("explainfix_ext.functional", "fixed_conv2d convolve convolve_learned"),
        ("explainfix_ext.registry", "Layer register initializers find_initializer"),
        ("explainfix_ext.memory", "MODES MemoryChanges MemoryReport flatten memory_report save_memory"),
        ("explainfix_ext.prune", "PruneReport apply_plan channelprune keep_zeros soft_prune"),
        ("explainfix_ext.explain_plots", "plot_spectra plot_e0 plot_filters plot_kept"),
        ("explainfix_ext.training.data", "load_dataset"),
        ("explainfix_ext.cli", "main"),
    ],
)
def test_public_path(module, names):
    if module in ("explainfix_ext.explain_plots", "explainfix_ext.training.data"):
        pytest.importorskip("matplotlib", reason='needs the extra "demo"')
    found = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(found, name)] == []


def module_of_before(path: str) -> ModuleType:
    """It must be this package's: beside an editable install of another copy, that one's would be found."""
    module = importlib.import_module(path)
    assert Path(str(module.__file__)).is_relative_to(Path(str(efx.__file__)).parent), f"{path} is {module.__file__}"
    return module


def test_functions_are_not_hidden_by_modules_of_their_name():
    """explainfix_ext.convert was a function and a module, which pickles name; so were summary and status."""
    names = ("convert", "summary", "status")
    for name in names:
        module_of_before(f"explainfix_ext.{name}")
    assert [name for name in names if not inspect.isfunction(getattr(efx, name))] == []


def test_the_operator_has_its_schema():
    """Exported programs, and traced ones, name it."""
    schema = str(torch.ops.explainfix.fixed_conv2d.default._schema)
    assert schema == (
        "explainfix::fixed_conv2d(Tensor x, Tensor basis, Tensor steering, Tensor? packed, Tensor? bias, "
        "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, int groups, float scale, int plan) -> Tensor"
    )


@pytest.mark.parametrize("command", PUBLIC["commands"])
def test_options(command, capsys, monkeypatch):
    for library in ("typer", "rich", "timm"):
        pytest.importorskip(library, reason='needs the extra "demo"')
    from explainfix_ext import cli

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command sets its own
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    options = set(PUBLIC["commands"][command]) - {"--nproc-per-node"}  # of torchrun, which the help named
    if command == "demo":  # it takes 3 minutes now, and has no end in the middle
        options.remove("--resume")
    assert options <= set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


def named_in(pickled: bytes) -> set[tuple[str, str]]:
    """(module, name) of every global that a pickle asks for. Strings that were seen before come from its memo."""
    found, strings, memo = set(), [], {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            module, _, name = argument.partition(" ")
            found.add((module, name))
        elif opcode.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            strings.append(argument)
        elif opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = strings[-1] if strings else ""
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else ""
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            strings.append(memo.get(argument, ""))
        elif opcode.name == "STACK_GLOBAL":
            found.add((strings[-2], strings[-1]))
    return found


def test_every_name_in_a_pickle_is_found():
    pytest.importorskip("timm")
    pickles = [(BEFORE / "objects.pkl").read_bytes()]
    for file in BEFORE.glob("*.pt"):
        with zipfile.ZipFile(file) as archive:
            pickles += [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
    names = {pair for pickled in pickles for pair in named_in(pickled) if pair[0].startswith("explainfix_ext")}
    assert {
        ("explainfix_ext.conv", "FixedConv2d"),
        ("explainfix_ext.conv_same", "FixedConv2dSame"),
        ("explainfix_ext.memory.modules", "MemoryFixedConv2d"),
        ("explainfix_ext.memory.blocks_timm", "MemorySqueezeExcite"),
    } <= names
    for module, name in names:
        assert hasattr(module_of_before(module), name), f"{module}.{name}"
