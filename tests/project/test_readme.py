"""README, CONTRIBUTING and CHANGELOG are true: Python blocks run, and what else they name exists and can be called."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from support.paths import ROOT

import explainfix_ext as efx

README = ROOT / "README.md"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
FOLDERS = ("bench", "csrc", "explainfix_ext", "tests", ".ci")
SOURCES = (".py", ".sh", ".md", ".h", ".cpp", ".cu", ".cuh", ".toml")
RUNNERS = {"bash", "python", "python3", "pytest"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def quoted(text: str) -> list[str]:
    """What stands in `backticks`, outside of blocks."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", text)]


def commands(text: str) -> list[list[str]]:
    """The words of every command in the bash blocks, without comments and variables that are set before it."""
    parts = [part for block in blocks(text, "bash") for line in block.splitlines() for part in line.split("&&")]
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


def anchors(text: str) -> set[str]:
    """Of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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


def test_python_blocks_run(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the README, one after another as a reader would paste them."""
    monkeypatch.chdir(tmp_path)  # an example writes a picture
    pytest.importorskip("torchvision", reason="torchvision (extra `models`) is not installed")
    pytest.importorskip("matplotlib", reason="pictures need the extra `demo`")
    found = blocks(README.read_text(), "python")
    assert len(found) >= 2
    scope: dict = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), scope)
    assert "17 spatial convolutions fixed, 0 left" in capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_can_be_run(document: str) -> None:
    text = (ROOT / document).read_text()
    inline = [shlex.split(words) for words in quoted(text) if words.startswith(("explainfix ", "bash ", "python "))]
    wrong = [wrong_command(words) for words in commands(text)]
    wrong += [wrong_command(words, whole=False) for words in inline]
    assert [reason for reason in wrong if reason] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_links_and_names_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    assert [name for name in files_named(text) if not exists(name)] == []
    for link, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^):]+)\)", text)):
        target = ROOT / link if link else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), f"{link}#{anchor}"
    names = {n for words in quoted(text) for n in re.findall(r"\b(?:efx|explainfix_ext)(?:\.[a-z_]\w*)+", words)}
    assert [missing_name(name) for name in names if "/" not in name and missing_name(name)] == []


def test_initialisations_are_all_in_the_readme() -> None:
    assert set(efx.initializers()) - set(quoted(README.read_text())) == set()


def test_these_tests_can_fail() -> None:
    text = "```bash\nOMP=1 python bench/no.py && explainfix demo --no 1  # --more\npytest tests/test_no.py\n```\n"
    assert commands(text)[1] == ["explainfix", "demo", "--no", "1"]
    reasons = [wrong_command(words) for words in commands(text)]
    assert reasons[0] == "bench/no.py does not exist"
    assert "No such option: --no" in (reasons[1] or "")
    assert reasons[2] == "tests/test_no.py does not exist"
    assert "Missing parameter: out" in (wrong_command(["explainfix", "train"]) or "")
    assert wrong_command(["explainfix", "train", "--help"]) is None
    assert wrong_command(["explainfix", "train", "--epochs", "3"], whole=False) is None
    assert "has no option --epoch" in (wrong_command(["explainfix", "train", "--epoch", "3"], whole=False) or "")
    assert wrong_command(["explainfix", "training"]) == "explainfix has no command training"
    named = files_named("`csrc/cpu/no.h`, `basis.py`, `pack_*.py`, `nowhere.py`, `a/b`, `runs/x`")
    assert named == ["basis.py", "csrc/cpu/no.h", "nowhere.py", "pack_*.py"]
    assert [exists(name) for name in named] == [True, False, False, True]
    assert missing_name("efx.convert") is None
    assert missing_name("explainfix_ext.memory.flatten") is None
    assert missing_name("explainfix_ext.memory.no") == "explainfix_ext.memory.no: no no"
