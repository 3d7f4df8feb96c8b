"""Help, the keys of a group and the version: answered without Hydra, and complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from souping import __version__
from souping.cli.config import GROUPS, Config
from souping.cli.help import COMMANDS, choices, folder, groups
from tests.conftest import ROOT, Cli


def test_the_version_is_soupings(souping: Cli) -> None:
    assert souping("--version").out == f"souping {__version__}\n"


def test_help_names_every_group_and_choice(souping: Cli) -> None:
    out = souping("--help").out
    assert set(groups()) == {*GROUPS, "experiment", "analysis"}
    for group in groups():
        assert f"{group}: {', '.join(choices(group))}" in out
    assert "help NAME" in out
    assert "$" not in out


def test_help_names_every_root_key_and_pages_that_exist(souping: Cli) -> None:
    out = souping("--help").out
    listed = out.split("Root keys:")[1].split("(")[0].split()
    known = {field.name for field in fields(Config)} - {*GROUPS}
    assert known - {"store"} <= {*listed}
    pages = re.findall(r"[\w./-]+\.md", out)
    assert pages
    assert [page for page in pages if not (ROOT / page).is_file()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(souping: Cli, name: str) -> None:
    for words in ((name, "--help"), (name, "-h"), ("--help", name), ("help", name)):
        done = souping(*words)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("usage: python -m souping")


def test_help_is_a_word_too(souping: Cli) -> None:
    assert souping("help").out == souping("--help").out
    assert souping("help", "selector").out == souping("--help", "selector").out
    souping("help", "shwo").refused("shwo", "show")
    souping().refused("pool.candidates", "souping help")


@pytest.mark.parametrize("group", groups())
def test_help_of_a_group_has_every_key(souping: Cli, group: str) -> None:
    out = souping("--help", group).out
    for name in choices(group):
        assert f"{group}={name}\n" in out
        lines = (folder() / group / f"{name}.yaml").read_text().splitlines()
        assert all(line in out for line in lines if line[:1].isalpha())
    assert "  _target_" not in out


def test_help_of_no_group_is_refused(souping: Cli) -> None:
    souping("--help", "selectr").refused("selectr", "did you mean selector?")


def test_help_with_overrides_is_hydras(souping: Cli) -> None:
    assert "Groups and their choices" in souping("--help", "+experiment=merge").out


def test_a_shell_completes_choices(tmp_path: Path) -> None:
    """The line that docs/reference.md has for bash, and what the function that it makes asks."""
    assert "souping -sc install=bash" in (ROOT / "docs/reference.md").read_text()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMP_LINE": "souping selector=", "COMP_POINT": "17"}
    words = [sys.executable, "-m", "souping", "-sc", "query=bash"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path)
    assert {f"selector={name}" for name in choices("selector")} <= set(done.stdout.split())


@pytest.mark.parametrize("flag", ["-sc", "--shell-completion"])
def test_a_person_who_types_what_a_shell_asks_is_told(souping: Cli, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    souping(flag, "query=bash").refused("install=bash")


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    line = f"{sys.executable} -m souping --help evaluator | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")
