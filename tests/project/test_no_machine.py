"""No tracked file names a folder of the machine that made it: not in text, not inside of binary files.

Forbidden is every absolute path into a place where somebody works (a home, a mounted disk, a temporary folder). Paths
to tools, such as /usr/bin/env and /usr/local/cuda, are the same on many machines and allowed. A shell script may use
/tmp: it makes what it reads there.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKPLACES = ("home", "root", "Users", "work", "workspace", "workspaces", "mnt", "media", "scratch", "srv", "tmp",
              "private/tmp", "private/var", "var/folders", "var/tmp", "content", "kaggle")  # fmt: skip
# Not after what makes it the end of a longer path or of an address: some/home/page, ../tmp/x, ~/work/x, $OUT/tmp/x.
PATH = re.compile(rb"(?<![\w.~/$}\])*-])/(?:%s)/[\w.][\w.+-]*" % "|".join(WORKPLACES).encode())
WINDOWS = re.compile(rb"(?<!\w)[A-Z]:\\+Users\\+\w+")
SCRATCH = b"/tmp/"


def machine_paths(content: bytes, shell: bool = False) -> list[str]:
    """The paths in a file that only its maker has; those below /tmp are fine in a shell script."""
    found = [match.group() for pattern in (PATH, WINDOWS) for match in pattern.finditer(content)]
    return [path.decode() for path in found if not (shell and path.startswith(SCRATCH))]


def is_shell(content: bytes) -> bool:
    return content.startswith(b"#!") and b"sh" in content.splitlines()[0]


def test_no_tracked_file_has_a_path_of_a_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = {}
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if file.is_file():  # else deleted, and not yet committed
            content = file.read_bytes()
            found[name] = sorted(set(machine_paths(content, is_shell(content))))
    assert len(found) > 100
    assert {name: paths for name, paths in found.items() if paths} == {}


def path(*parts: str) -> str:
    """Put together here, so that this file has none."""
    return "/" + "/".join(parts)


def test_the_rule_finds_paths_and_nothing_else():
    bad = [path("home", "ann", "x.npz"), path("root", ".cache"), path("tmp", "x"), path("work", "data", "y")]
    for one in bad:
        for text in (one, f'"data": "{one}"', f"bbbc038:{one}?size=96", f"({one})", f"--out={one}\0"):
            assert machine_paths(text.encode()) != [], text
    assert machine_paths(b"C:" + b"\\\\Users\\\\ann\\\\x") != []
    good = ["#!/usr/bin/env bash", path("usr", "local", "cuda"), "some/home/page", "https://a.org/home/b", "../work/x"]
    for one in [*good, "~/work/x", "$OUT/tmp/x", "runs/tmp/x", "read/work/write"]:
        assert machine_paths(one.encode()) == [], one
    script = b"#!/usr/bin/env bash\napt-get >" + path("tmp", "log").encode()
    assert is_shell(script)
    assert machine_paths(script, shell=True) == []
    assert machine_paths(script + path("home", "ann").encode(), shell=True) == []  # it goes on: one path
    assert machine_paths(script + b" " + path("home", "ann").encode(), shell=True) != []


@pytest.fixture
def names_only(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("names_only")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (path("a", "b", "x.npz"), "x.npz"),
        (f"bbbc038:{path('a', 'x.npz')}?size=96", "bbbc038:x.npz?size=96"),
        (f"train --data={path('a', 'x.npz')} --out ~/runs/y", "train --data=x.npz --out y"),
        (f"{path('a', 'x.npz')!r} is damaged", "'x.npz' is damaged"),
        ("https://arxiv.org/abs/2303.10408", "https://arxiv.org/abs/2303.10408"),
        ("dense / kernel, images/s", "dense / kernel, images/s"),
        ("runs/mnist/dct2", "runs/mnist/dct2"),
        ("chexpert:CheXpert-v1.0-small?size=128", "chexpert:CheXpert-v1.0-small?size=128"),
    ],
)
def test_results_keep_names_only(names_only, text, short):
    found = {"runs": [{"config": {"data": text, "lr": 0.1}}], "n": 3, "none": None}
    assert names_only.names_only(found) == {"runs": [{"config": {"data": short, "lr": 0.1}}], "n": 3, "none": None}


def test_results_are_copied_with_their_curves(names_only, tmp_path):
    pytest.importorskip("matplotlib", reason='needs the extra "demo"')
    file = ROOT / "bench" / "results" / "pneumoniamnist_cpu.json"
    found = json.loads(file.read_text())
    found["data"]["name"] = path("a", "b", "images.npz")
    (tmp_path / "results.json").write_text(json.dumps(found))
    names_only.main([str(tmp_path / "results.json"), str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["data"]["name"] == "images.npz"
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
