"""What a release is made of agrees: its version, its packages, and the workflows that run `.ci/run`."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools
import yaml

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "install_requires": "dependencies",
    "extras_require": "optional-dependencies",
    "python_requires": "requires-python",
    "classifiers": "classifiers",
    "entry_points": "scripts",
    "long_description": "readme",
}
"""What setup.py has, by its name in pyproject.toml."""


def check(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "release.py"), *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_version_is_the_same_everywhere_and_a_tag_with_another_one_is_refused() -> None:
    same = check()
    assert same.returncode == 0, same.stderr
    assert check("v0.0.0").returncode == 1


def test_every_workflow_runs_the_script_of_ci() -> None:
    paths = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert [path.name for path in paths] == ["ci.yml", "docs.yml", "release.yml"]
    for path in paths:
        if path.name == "docs.yml":
            continue
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        commands = list[str]()
        for job in workflow["jobs"].values():
            commands += [step.get("run", "") for step in job["steps"]]
        assert "bash .ci/run" in commands, path.name


def test_the_site_has_every_page_of_the_docs() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = re.findall(r"[\w./-]+\.md", str(site["nav"]))
    assert len(named) == len(set(named))
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")]
    assert set(pages) <= set(named)
    # The hook makes this one.
    named.remove("python.md")
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_what_setup_py_has_is_dynamic_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (setup,) = [call for call in calls if ast.unparse(call.func) == "setup"]
    keywords = {keyword.arg for keyword in setup.keywords}
    assert sorted(project["dynamic"]) == sorted(KEYS[key] for key in KEYS if key in keywords)
    assert keywords.isdisjoint(project)


def test_links_of_the_readme_lead_somewhere_on_pypi_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the repository, once pyproject.toml has its address; until then a link to a file is only its text."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    description = runpy.run_path(str(ROOT / "setup.py"))["description"]
    plain = description("")
    assert re.findall(r"\]\((?!https://)", plain) == []
    assert "](https://arxiv.org/abs/2511.13254)" in plain
    assert "- Start: your models, reading a report" in plain
    linked = re.findall(
        r"\]\(https://host/souping/blob/v[\d.]+/([^)#]+)", description("https://host/souping")
    )
    assert len(linked) > 15
    assert [path for path in linked if not (ROOT / path).is_file()] == []
