"""What keeps the project in order stays in order itself: workflows, hooks and the citation name what is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / ".github").is_dir():
    pytest.skip("not a git checkout: a source distribution has no workflows", allow_module_level=True)
yaml = pytest.importorskip("yaml")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def project() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    "file", [*WORKFLOWS, ROOT / ".ci" / "run", ROOT / "bench" / "gpu.sh"], ids=lambda file: file.name
)
def test_ci_runs_tests_that_are_there(file):
    named = [name.rstrip(".") for name in re.findall(r"\btests(?:/[\w.]+)+", file.read_text())]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_job_has_a_limit_and_reads_only(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])


def test_bug_reports_ask_for_the_status():
    forms = [yaml.safe_load(file.read_text()) for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")]
    fields = [field for form in forms for field in form.get("body", [])]
    assert any("explainfix status" in field["attributes"]["label"] for field in fields)


def test_hooks_are_the_tools_of_the_extra_dev():
    hooks = [h for r in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for h in r["hooks"]]
    tools = project()["project"]["optional-dependencies"]["dev"]
    assert {hook["entry"].split()[0] for hook in hooks} <= set(tools)
    assert {hook["language"] for hook in hooks} == {"system"}  # the installed tool: one version for hooks and CI


def test_the_changelog_begins_with_this_version() -> None:
    head = re.search(r"^## (\S+) - (unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert head is not None
    assert head[1] == project()["project"]["version"]


def test_the_citation_is_of_this_version_and_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project()["project"]["version"]
    paper, readme = citation["preferred-citation"], (ROOT / "README.md").read_text()
    assert paper["title"] in readme
    assert f"year    = {{{paper['year']}}}" in readme.replace("  year ", "year ")
