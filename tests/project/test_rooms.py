"""Imports of the package run down the list of rooms, never up and never in a circle.

Every `import` in a source file counts: at the top, inside a function, and those for type checkers only.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "explainfix_ext"

# The rooms, the lowest first: a file may import from its own room and from those above it in this list.
# CONTRIBUTING.md has the same list with a sentence for each.
ROOMS = [
    "_support",
    "filters",
    "ops",
    "ops.plans",
    "functional",
    "nn",
    "memory",
    "memory.streaming",
    "memory.budget",
    "explain",
    "prune.trace",
    "prune.cut",
    "prune.score",
    "prune.torch_pruning",
    "prune",
    "conversion",
    "deploy",
    "training.sources",
    "training",
    "commands.benchmarks",
    "commands.webpage",
    "commands",
    "registry",
    "explain_plots",
    "onnx",
    "cli",
    "",  # explainfix_ext/__init__.py, which gathers the public names
]
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name below the package, without `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """The folder that a module lies in; a file beside `__init__.py` is a room of its own."""
    is_folder = MODULES[module].name == "__init__.py"
    return module if is_folder or "." not in module else module.rpartition(".")[0]


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports; importing a name of a folder is importing its `__init__`."""
    folder = ["explainfix_ext", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("explainfix_ext"))
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) + 1 - node.level] if node.level else []
            full = ".".join([*above, *([node.module] if node.module else [])])
            if full.split(".")[0] != "explainfix_ext":
                continue
            base = full.partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES and alias.name not in exported(base) else base


def exported(module: str) -> set[str]:
    """Names that an `__init__` file binds itself: `from .memory import flatten` means the function."""
    if MODULES[module].name != "__init__.py":
        return set()
    tree = ast.parse(MODULES[module].read_text())
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.asname or alias.name for node in froms for alias in node.names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down(path: Path) -> None:
    here = ROOMS.index(room_of(module_of(path)))
    up = [name for name in imported(path) if ROOMS.index(room_of(name)) > here]
    assert not up, f"{module_of(path)} imports from rooms above its own: {up}"


def test_no_circle() -> None:
    graph = {module: set(imported(path)) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(error.args[1])}")


def test_the_root_is_small() -> None:
    """Eleven rooms and six modules; `py.typed` marks the package as typed."""
    rooms = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(rooms) <= 11
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_every_room_says_what_it_is_for() -> None:
    """A folder without an `__init__` would be left out of the wheel."""
    for folder in {path.parent for path in FILES}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


@pytest.mark.parametrize(("folder", "most"), [("explainfix_ext", 300), ("csrc", 300), ("bench", 300), ("tests", 400)])
def test_files_are_short(folder: str, most: int) -> None:
    kinds = {".py", ".css", ".cpp", ".h", ".cu", ".cuh"}
    files = [path for path in (PACKAGE.parent / folder).rglob("*") if path.suffix in kinds]
    lengths = {str(path.relative_to(PACKAGE.parent)): len(path.read_text().splitlines()) for path in files}
    assert not {name: length for name, length in lengths.items() if length > most}


def test_a_planted_arrow_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, text in {"low": "from explainfix_ext.high import x", "high": "", ".": ""}.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "__init__.py").write_text(text)
    files = sorted(tmp_path.rglob("*.py"))
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "ROOMS", ["low", "high", ""])
    monkeypatch.setitem(globals(), "MODULES", {module_of(path): path for path in files})
    with pytest.raises(AssertionError, match="low imports from rooms above its own: .'high'"):
        test_imports_run_down(tmp_path / "low" / "__init__.py")
