"""What projects have: files that others read by machine are sound, and say what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

from souping import __version__
from tests.conftest import ROOT

MAIN_JOB = "+experiment=bfcl"


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


def test_the_image_runs_the_main_job() -> None:
    """Checked by its lines: everything that is copied is there, and the last one is the README's command."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {"setup.py", "pyproject.toml", "README.md", "conf", "souping"} <= set(copied)
    assert lines[-2:] == ['ENTRYPOINT ["python", "-m", "souping"]', f'CMD ["{MAIN_JOB}"]']
    assert f"python -m souping {MAIN_JOB}" in (ROOT / "README.md").read_text()
    assert re.match(r"FROM python:3\.1[1-3]", lines[0])
    ignored = Path(ROOT / ".dockerignore").read_text().split()
    assert not set(copied) & set(ignored)
