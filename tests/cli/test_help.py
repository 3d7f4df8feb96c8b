"""Help, version and commands: answered without Hydra, and complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from souping import __version__
from souping.cli import COMMANDS, choices, folder, groups
from souping.cli.config import GROUPS, Config
from tests.conftest import ROOT, Cli


def test_help_names_every_group_choice_command_root_key_and_pages_that_exist(souping: Cli) -> None:
    out = souping("--help").out
    assert souping("help").out == out
    assert set(groups()) == {*GROUPS, "experiment", "analysis"}
    for group in groups():
        assert f"{group}: {', '.join(choices(group))}" in out
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert [name for name in COMMANDS if [name, COMMANDS[name]] not in lines] == []
    listed = out.split("Root keys:")[1].split("(")[0].split()
    assert {field.name for field in fields(Config)} - {*GROUPS, "store"} <= {*listed}
    pages = re.findall(r"[\w./-]+\.md", out)
    assert pages
    assert [page for page in pages if not (ROOT / page).is_file()] == []
    assert "$" not in out
    assert "Groups and their choices" in souping("--help", "+experiment=merge").out
    assert souping("--version").out == f"souping {__version__}\n"


def test_every_command_has_help(souping: Cli) -> None:
    for name in COMMANDS:
        for words in ((name, "--help"), (name, "-h"), ("--help", name), ("help", name)):
            done = souping(*words)
            assert (done.code, done.err) == (0, "")
            assert done.out.startswith("usage: python -m souping")


def test_help_of_a_group_has_every_key(souping: Cli) -> None:
    for group in groups():
        out = souping("--help", group).out
        for name in choices(group):
            assert f"{group}={name}\n" in out
            lines = (folder() / group / f"{name}.yaml").read_text().splitlines()
            assert all(line in out for line in lines if line[:1].isalpha())
        assert "  _target_" not in out
    assert souping("help", "selector").out == souping("--help", "selector").out


def test_words_that_are_no_command_or_group_are_refused(souping: Cli) -> None:
    souping("--help", "selectr").refused("selectr", "did you mean selector?")
    souping("help", "shwo").refused("shwo", "show")
    souping("shows").refused("shows", "did you mean show?", "KEY=VALUE")
    souping().refused("pool.candidates is not set", "+experiment=demo", "souping help")


def test_a_shell_completes_choices_and_a_reader_may_leave(tmp_path: Path) -> None:
    """The line that docs/reference.md has for bash, and what the function that it makes runs."""
    assert "souping -sc install=bash" in (ROOT / "docs/reference.md").read_text()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = {**environment, "COMP_LINE": "souping selector=", "COMP_POINT": "17"}
    words = [sys.executable, "-m", "souping", "-sc", "query=bash"]
    done = subprocess.run(words, capture_output=True, text=True, env=asked, check=True, cwd=tmp_path)
    assert {f"selector={name}" for name in choices("selector")} <= set(done.stdout.split())
    line = f"{sys.executable} -m souping --help evaluator | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment, check=True, cwd=tmp_path)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")
