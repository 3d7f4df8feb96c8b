"""What projects have: files that others read by machine are sound, and say what the code says."""

from __future__ import annotations

import tomllib

import yaml

from souping import __version__
from tests.conftest import ROOT


def test_citation() -> None:
    table = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= set(table)
    assert table["version"] == __version__
    assert "2511.13254" in table["references"][0]["url"]


def test_templates() -> None:
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        table = yaml.safe_load(path.read_text())
        assert path.name == "config.yml" or {"name", "description", "body"} <= set(table), path
    assert "CHANGELOG.md" in (ROOT / ".github/pull_request_template.md").read_text()
    assert (ROOT / "CODE_OF_CONDUCT.md").is_file()


def test_the_package_says_what_it_runs_on() -> None:
    setup = (ROOT / "setup.py").read_text()
    assert f'version="{__version__}"' in setup
    for line in ("Python :: 3.11", "Python :: 3.12", "Python :: 3.13", "POSIX :: Linux", "MacOS"):
        assert line in setup
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
